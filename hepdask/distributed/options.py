"""How a run of ranks is placed, bounded, restarted and reported."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Literal, get_args

Backend = Literal["horovod", "tf.distribute"]


def print_output(rank: int, line: str) -> None:
    """Print a line of a rank with the number of the rank in front."""
    print(f"[{rank}] {line}", flush=True)


def print_status(sentence: str) -> None:
    """Print a sentence about the run to standard error."""
    print(f"[ranks] {sentence}", file=sys.stderr, flush=True)


@dataclass(frozen=True, kw_only=True)
class RankOptions:
    """How `hepdask.distributed.run` places, bounds, restarts and reports the ranks of a function.

    Attributes
    ----------
    timeout : float
        Seconds in which the slots must become free and all ranks must have started. How long the function takes is
        not limited.
    silence_timeout : float
        Most seconds in which no rank prints a line, the imports at the start included; then one of them hangs,
        and the run fails. By default an hour; there is no run without a bound.
    env : mapping of str to str
        Environment variables of the ranks.
    cores_per_rank : int
        Threads of a worker that each rank uses up; a worker with *t* threads offers ``t // cores_per_rank``
        slots.
    gpus_per_rank : int or None
        GPUs of each rank, by the Dask resource ``GPU`` of the workers; a rank sees only its own
        (``CUDA_VISIBLE_DEVICES``), none if 0. By default one on workers that offer any; on others a rank sees what
        its worker sees.
    interface : str or None
        Network interface, on all hosts and the scheduler's, over which ranks talk to each other and to the
        rendezvous; by default the one that has the Dask worker's or the scheduler's address.
    port_range : (int, int) or None
        First and last port on which the rendezvous may listen, on the scheduler's host; with ``tf.distribute``
        also the ranks on theirs. By default any port.
    backend : "horovod" or "tf.distribute"
        What the ranks find prepared: Horovod, initialised; or the environment variable ``TF_CONFIG``, from which
        ``tf.distribute.MultiWorkerMirroredStrategy()`` learns of the others.
    restarts : int
        How many times to start all ranks again after one has failed.
    min_ranks : int or None
        After a failure, go on with as few ranks as this; by default with all or not at all.
    regroup_timeout : float
        After a failure, seconds to wait for the full number of slots before fewer will do.
    give_up_on : type or tuple of types
        Exceptions of the function after which starting again is of no use.
    checkpoint : path or None
        Folder on a file system that driver and workers share. The function is then given a
        `hepdask.distributed.Checkpoint` on it as keyword argument ``checkpoint``. What is in the
        folder from an earlier run is gone on from.
    log_dir : path or None
        Folder for ``rank-0.log`` and so on, written by the caller's process.
    on_output : callable
        Called with ``(rank, line)`` for each line a rank prints, in the thread that called ``run``. By
        default lines are printed with the rank in front.
    on_status : callable
        Called with a sentence about the run itself: which slots it waits for, that it starts again. By default
        these are printed to standard error.

    Raises
    ------
    TypeError, ValueError
        An option is of no use; the message names it.
    """

    timeout: float = 300.0
    silence_timeout: float = 3600.0
    env: Mapping[str, str] = field(default_factory=dict)
    cores_per_rank: int = 1
    gpus_per_rank: int | None = None
    interface: str | None = None
    port_range: tuple[int, int] | None = None
    backend: Backend = "horovod"
    restarts: int = 0
    min_ranks: int | None = None
    regroup_timeout: float = 30.0
    give_up_on: type[BaseException] | tuple[type[BaseException], ...] = ()
    checkpoint: str | Path | None = None
    log_dir: str | Path | None = None
    on_output: Callable[[int, str], None] = print_output
    on_status: Callable[[str], None] = print_status

    def __post_init__(self) -> None:
        object.__setattr__(self, "env", dict(self.env))
        for name, least in (("cores_per_rank", 1), ("gpus_per_rank", 0), ("restarts", 0), ("min_ranks", 1)):
            value = getattr(self, name)
            if value is not None or name in ("cores_per_rank", "restarts"):
                require_whole(name, value, least)
        if self.backend not in get_args(Backend):
            raise ValueError(f"backend must be one of {', '.join(get_args(Backend))}, not {self.backend!r}")
        for name in ("timeout", "regroup_timeout"):
            seconds = getattr(self, name)
            if not (isinstance(seconds, Real) and float(seconds) >= 0):
                raise ValueError(f"{name} must be a number of seconds of at least 0, not {seconds!r}")
        if not _is_bound(self.silence_timeout):
            raise ValueError(
                f"silence_timeout must be a number of seconds above 0 and finite, not {self.silence_timeout!r}: a rank "
                "that hangs would never be noticed"
            )
        if self.port_range is not None and not _are_ports(self.port_range):
            raise ValueError(
                f"port_range must be first and last port, from 1 to 65535, not {self.port_range!r}"
            )
        for name, text in self.env.items():
            if not isinstance(name, str) or not isinstance(text, str):
                raise TypeError(f"env must map str to str; it has {name!r}: {text!r}")
        for name in ("on_output", "on_status"):
            if not callable(getattr(self, name)):
                raise TypeError(f"{name} must be callable, not {getattr(self, name)!r}")
        types = self.give_up_on if isinstance(self.give_up_on, tuple) else (self.give_up_on,)
        if not all(isinstance(one, type) and issubclass(one, BaseException) for one in types):
            raise TypeError(f"give_up_on must be types of exceptions, not {self.give_up_on!r}")
        if self.checkpoint is not None and self.backend != "horovod":
            raise ValueError(
                "checkpoint needs Horovod's collectives; under tf.distribute use tf.train.Checkpoint"
            )

    def for_cluster(self) -> RankOptions:
        """Return what scheduler and workers may know: callbacks, types and folders of the driver stay there."""
        return replace(
            self,
            give_up_on=(),
            checkpoint=None,
            log_dir=None,
            on_output=print_output,
            on_status=print_status,
        )


def require_whole(name: str, value: Any, least: int) -> None:
    """Raise TypeError unless a value is a whole number, ValueError unless it is at least so large."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name} must be a whole number, not {value!r}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, not {value}")


def _is_bound(seconds: Any) -> bool:
    return isinstance(seconds, Real) and 0 < float(seconds) < math.inf


def _are_ports(given: Any) -> bool:
    try:
        first, last = given
        return bool(1 <= first <= last <= 65_535)
    except (TypeError, ValueError):
        return False


#: What `hepdask.distributed.run` does where it is told nothing else.
DEFAULTS = RankOptions()

"""The driver's side of a run: what a caller can ask for, and starting again after a failure."""

from __future__ import annotations

import math
import sys
import threading
from collections.abc import Callable, Mapping
from numbers import Integral, Real
from pathlib import Path
from typing import Any, get_args

import cloudpickle
from distributed import Client

from hepdask.distributed.attempt import SILENCE, Attempt, Reporter, Wanted
from hepdask.distributed.checkpoint import Checkpoint
from hepdask.distributed.errors import RankFailed
from hepdask.distributed.future import RunFuture
from hepdask.distributed.rank_task import Backend


def run(
    fn: Callable[..., Any],
    *args: Any,
    client: Client,
    ranks: int,
    timeout: float = 300.0,
    env: Mapping[str, str] | None = None,
    cores_per_rank: int = 1,
    gpus_per_rank: int | None = None,
    interface: str | None = None,
    port_range: tuple[int, int] | None = None,
    backend: Backend = "horovod",
    silence_timeout: float = SILENCE,
    on_output: Callable[[int, str], None] | None = None,
    on_status: Callable[[str], None] | None = None,
    log_dir: str | Path | None = None,
    checkpoint: str | Path | None = None,
    restarts: int = 0,
    min_ranks: int | None = None,
    regroup_timeout: float = 30.0,
    give_up_on: type[BaseException] | tuple[type[BaseException], ...] = (),
    stop: threading.Event | None = None,
    **kwargs: Any,
) -> list[Any]:
    """Run a function as the ranks of one Horovod job on the workers of a Dask cluster.

    Every rank is a fresh process, started on a worker of its own or beside others on one worker, in which
    ``horovod.tensorflow`` has been initialised when ``fn(*args, **kwargs)`` is called. All ranks start
    together or none does.

    Parameters
    ----------
    fn : callable
        What each rank runs; anything that cloudpickle can carry. It learns which rank it is from Horovod.
    *args, **kwargs
        Its arguments, the same on every rank; a keyword that this function has itself cannot be passed on,
        use :func:`functools.partial`.
    client : distributed.Client
        A connected, synchronous client.
    ranks : int
        Number of ranks.
    timeout : float
        Seconds in which the slots must become free and all ranks must have started. How long ``fn`` takes is
        not limited.
    env : mapping of str to str, optional
        Environment variables of the ranks.
    cores_per_rank : int
        Threads of a worker that each rank uses up; a worker with *t* threads offers ``t // cores_per_rank``
        slots.
    gpus_per_rank : int, optional
        GPUs of each rank, by the Dask resource ``GPU`` of the workers; a rank sees its own ones only
        (``CUDA_VISIBLE_DEVICES``), none if 0. By default one on workers that offer any; on others a rank sees what
        its worker sees.
    interface : str, optional
        Network interface, on all hosts and the scheduler's, over which ranks talk to each other and to the
        rendezvous; by default the one that has the Dask worker's or the scheduler's address.
    port_range : (int, int), optional
        First and last port on which the rendezvous may listen, on the scheduler's host; with ``tf.distribute``
        also the ranks on theirs.
    backend : "horovod" or "tf.distribute"
        What the ranks find prepared: Horovod, initialised; or the environment variable ``TF_CONFIG``, from which
        ``tf.distribute.MultiWorkerMirroredStrategy()`` learns of the others.
    silence_timeout : float
        Most seconds in which no rank prints a line, the imports at the start included; then one of them hangs,
        and the run fails. By default an hour; there is no run without a bound.
    on_output : callable, optional
        Called with ``(rank, line)`` for each line a rank prints, in the thread that called this function. By
        default lines are printed with the rank in front.
    on_status : callable, optional
        Called with a sentence about the run itself: which slots it waits for, that it starts again. By default
        these are printed to standard error.
    log_dir : path, optional
        Folder for ``rank-0.log`` and so on, written by the caller's process.
    checkpoint : path, optional
        Folder on a file system that driver and workers share. ``fn`` is then given a
        :class:`~hepdask.distributed.Checkpoint` on it as keyword argument ``checkpoint``. What is in the
        folder from an earlier run is gone on from.
    restarts : int
        How many times to start all ranks again after one has failed.
    min_ranks : int, optional
        After a failure, go on with as few ranks as this; by default with ``ranks`` or not at all.
    regroup_timeout : float
        After a failure, seconds to wait for the full number of slots before fewer will do.
    give_up_on : type or tuple of types
        Exceptions of ``fn`` after which starting again is of no use.
    stop : threading.Event, optional
        Ends the run when another thread sets it, as Ctrl-C does.

    Returns
    -------
    list
        What ``fn`` returned, in rank order; shorter than ``ranks`` if the run ended with fewer.

    Raises
    ------
    TypeError, ValueError
        At once, if an argument is of no use; nothing was started.
    RankFailed
        If a rank raises, exits, is killed, or loses its worker, once more than ``restarts`` allows. All others
        have been ended.
    NotEnoughSlots
        If not all ranks could be started within ``timeout``.
    HorovodMissing
        If Horovod cannot be imported on a worker and there is more than one rank.
    CannotListen
        If no port of ``port_range`` is free on the scheduler's host, or it has no such ``interface``.
    concurrent.futures.CancelledError
        If the tasks were cancelled, the connection to the scheduler was lost, or ``stop`` was set.
    """
    fewest = ranks if min_ranks is None else min_ranks
    if not callable(fn):
        raise TypeError(f"fn must be callable, not {fn!r}")
    wanted = Wanted(
        ranks,
        timeout,
        cores_per_rank,
        gpus_per_rank,
        dict(env or {}),
        interface,
        port_range,
        backend,
        silence_timeout,
    )
    _check(client, wanted, fewest, restarts)
    if checkpoint is not None:
        if backend != "horovod":
            raise ValueError(
                "checkpoint needs Horovod's collectives; under tf.distribute use tf.train.Checkpoint"
            )
        Path(checkpoint).mkdir(parents=True, exist_ok=True)
        kwargs = {**kwargs, "checkpoint": Checkpoint(checkpoint)}
    call = cloudpickle.dumps((fn, args, kwargs))
    reporter = Reporter(on_output or _print, on_status or _tell, _fresh(log_dir))
    stop = stop or threading.Event()
    avoid: list[str] = []
    attempt = Attempt(client, wanted, reporter, stop)
    for left in range(restarts, -1, -1):
        try:
            with attempt:
                return attempt.carry_out(call)
        except RankFailed as failure:
            if left == 0 or isinstance(failure.__cause__, give_up_on):
                raise
            reporter.status(f"{failure.headline}; starting again ({left} restart(s) left)")
            avoid += attempt.unresponsive
            attempt = Attempt(client, wanted, reporter, stop, fewest, regroup_timeout, avoid)
    raise AssertionError("the last attempt returns or raises")


def submit(
    fn: Callable[..., Any], *args: Any, client: Client, ranks: int, **options: Any
) -> RunFuture[list[Any]]:
    """Start :func:`run` in the background and return at once.

    Parameters
    ----------
    fn, *args, client, ranks, **options
        As for :func:`run`; ``on_output`` and ``on_status`` are called in another thread.

    Returns
    -------
    RunFuture
        A :class:`concurrent.futures.Future` of the list of results. The run goes on without it, as long as
        the driver lives.
    """
    stop = threading.Event()

    def body() -> list[Any]:
        return run(fn, *args, client=client, ranks=ranks, stop=stop, **options)

    return RunFuture(body, stop)


def _check(client: Client, wanted: Wanted, fewest: int, restarts: int) -> None:
    ranks, cores_per_rank = wanted.ranks, wanted.cores_per_rank
    if not isinstance(client, Client) or client.asynchronous:
        raise TypeError(f"run needs a synchronous client, distributed.Client(address), not {client!r}")
    if client.status != "running":
        raise ValueError(f"the client is not connected: its status is {client.status!r}")
    whole = {"ranks": ranks, "cores_per_rank": cores_per_rank, "min_ranks": fewest, "restarts": restarts}
    if wanted.gpus_per_rank is not None:
        whole["gpus_per_rank"] = wanted.gpus_per_rank
    for name, value in whole.items():
        if isinstance(value, bool) or not isinstance(value, Integral):
            raise TypeError(f"{name} must be a whole number, not {value!r}")
    if ranks < 1 or cores_per_rank < 1:
        raise ValueError(f"ranks and cores_per_rank must be at least 1, not {ranks} and {cores_per_rank}")
    if wanted.gpus_per_rank is not None and wanted.gpus_per_rank < 0:
        raise ValueError(f"gpus_per_rank must be at least 0, not {wanted.gpus_per_rank}")
    if wanted.backend not in get_args(Backend):
        raise ValueError(f"backend must be one of {', '.join(get_args(Backend))}, not {wanted.backend!r}")
    if not wanted.timeout >= 0:
        raise ValueError(f"timeout must be at least 0, not {wanted.timeout}")
    if not _is_bound(wanted.silence_timeout):
        raise ValueError(
            f"silence_timeout must be a number of seconds above 0 and finite, not {wanted.silence_timeout!r}: a rank "
            "that hangs would never be noticed"
        )
    if not 1 <= fewest <= ranks:
        raise ValueError(f"min_ranks must be from 1 to ranks ({ranks}), not {fewest}")
    if restarts < 0:
        raise ValueError(f"restarts must be at least 0, not {restarts}")
    if wanted.port_range is not None and not _are_ports(wanted.port_range):
        raise ValueError(
            f"port_range must be first and last port, from 1 to 65535, not {wanted.port_range!r}"
        )
    for name, text in wanted.env.items():
        if not isinstance(name, str) or not isinstance(text, str):
            raise TypeError(f"env must map str to str; it has {name!r}: {text!r}")


def _is_bound(seconds: Any) -> bool:
    return isinstance(seconds, Real) and 0 < float(seconds) < math.inf


def _are_ports(given: Any) -> bool:
    try:
        first, last = given
        return bool(1 <= first <= last <= 65_535)
    except (TypeError, ValueError):
        return False


def _fresh(log_dir: str | Path | None) -> Path | None:
    """Make the folder of the logs, without those of an earlier run."""
    if log_dir is None:
        return None
    folder = Path(log_dir)
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("rank-*.log"):
        old.unlink()
    return folder


def _print(rank: int, line: str) -> None:
    print(f"[{rank}] {line}", flush=True)


def _tell(sentence: str) -> None:
    print(f"[ranks] {sentence}", file=sys.stderr, flush=True)

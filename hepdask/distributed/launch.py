"""`run` and `submit`: a function as ranks, started again after a failure."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cloudpickle
from distributed import Client

from hepdask.distributed.attempt import Attempt
from hepdask.distributed.checkpoint import Checkpoint
from hepdask.distributed.errors import RankFailed
from hepdask.distributed.future import RunFuture
from hepdask.distributed.options import DEFAULTS, RankOptions, require_whole


def run(
    fn: Callable[..., Any],
    /,
    *args: Any,
    client: Client,
    ranks: int,
    options: RankOptions = DEFAULTS,
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
        Its arguments, the same on every rank. All keywords but ``client``, ``ranks`` and ``options`` are its own.
    client : distributed.Client
        A connected, synchronous client.
    ranks : int
        Number of ranks.
    options : RankOptions
        How they are placed, bounded, restarted and reported.

    Returns
    -------
    list
        What ``fn`` returned, in rank order; shorter than ``ranks`` if the run ended with fewer.

    Raises
    ------
    TypeError, ValueError
        At once, if an argument is of no use; nothing was started.
    RankFailed
        If a rank raises, exits, is killed, or loses its worker, once more than ``options.restarts`` allows. All
        others have been ended.
    NotEnoughSlots
        If not all ranks could be started within ``options.timeout``.
    HorovodMissing
        If Horovod cannot be imported on a worker and there is more than one rank.
    CannotListen
        If no port of ``options.port_range`` is free on the scheduler's host, or it has no such interface.
    concurrent.futures.CancelledError
        If the tasks were cancelled, or the connection to the scheduler was lost.
    """
    return run_until(threading.Event(), fn, args, kwargs, client, ranks, options)


def submit(
    fn: Callable[..., Any],
    /,
    *args: Any,
    client: Client,
    ranks: int,
    options: RankOptions = DEFAULTS,
    **kwargs: Any,
) -> RunFuture[list[Any]]:
    """Start `run` in the background and return at once.

    Parameters
    ----------
    fn, *args, client, ranks, options, **kwargs
        As for `run`; ``options.on_output`` and ``options.on_status`` are called in another thread.

    Returns
    -------
    RunFuture
        A `concurrent.futures.Future` of the list of results. The run goes on without it, as long as
        the driver lives.
    """
    stop = threading.Event()
    return RunFuture(lambda: run_until(stop, fn, args, kwargs, client, ranks, options), stop)


def run_until(
    stop: threading.Event,
    fn: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    client: Client,
    ranks: int,
    options: RankOptions,
) -> list[Any]:
    """Do what `run` does, until another thread sets ``stop``: then all ranks are ended, as on Ctrl-C.

    Raises
    ------
    concurrent.futures.CancelledError
        If ``stop`` was set, too.
    """
    _check(fn, client, ranks, options)
    if options.checkpoint is not None:
        if "checkpoint" in kwargs:
            raise TypeError(
                "fn is given its keyword checkpoint twice: by the caller, and because options.checkpoint is set"
            )
        Path(options.checkpoint).mkdir(parents=True, exist_ok=True)
        kwargs = {**kwargs, "checkpoint": Checkpoint(options.checkpoint)}
    call = cloudpickle.dumps((fn, args, kwargs))
    if options.log_dir is not None:
        _make_empty(Path(options.log_dir))
    avoid: list[str] = []
    attempt = Attempt(client, ranks, options, stop)
    for left in range(options.restarts, -1, -1):
        try:
            with attempt:
                return attempt.carry_out(call)
        except RankFailed as failure:
            if left == 0 or isinstance(failure.__cause__, options.give_up_on):
                raise
            options.on_status(f"{failure.headline}; starting again ({left} restart(s) left)")
            avoid += attempt.unresponsive
            attempt = Attempt(client, ranks, options, stop, options.min_ranks, avoid)
    raise AssertionError("the last attempt returns or raises")


def _check(fn: Any, client: Any, ranks: Any, options: Any) -> None:
    if not callable(fn):
        raise TypeError(f"fn must be callable, not {fn!r}")
    if not isinstance(options, RankOptions):
        raise TypeError(f"options must be RankOptions, not {options!r}")
    if not isinstance(client, Client) or client.asynchronous:
        raise TypeError(f"run needs a synchronous client, distributed.Client(address), not {client!r}")
    if client.status != "running":
        raise ValueError(f"the client is not connected: its status is {client.status!r}")
    require_whole("ranks", ranks, 1)
    if options.min_ranks is not None and options.min_ranks > ranks:
        raise ValueError(f"min_ranks must be from 1 to ranks ({ranks}), not {options.min_ranks}")


def _make_empty(log_dir: Path) -> None:
    """Make the folder of the logs, without those of an earlier run."""
    log_dir.mkdir(parents=True, exist_ok=True)
    for old in log_dir.glob("rank-*.log"):
        old.unlink()

"""What can go wrong in a distributed run, as exceptions that carry the facts."""

from __future__ import annotations

import signal as signals


class DistributedError(Exception):
    """What goes wrong in a distributed run; each is also the builtin that fits."""


class RankFailed(DistributedError, RuntimeError):
    """One rank failed, and the others were ended because of it.

    The exception that the rank's function raised is the ``__cause__``, where it could be pickled and its package
    is loaded in the driver.

    Attributes
    ----------
    rank, size : int
        The rank that failed first, and how many there were.
    host : str
        Address of the machine it ran on.
    worker : str
        Address of the Dask worker that started it.
    reason : str
        What happened, as the end of the sentence "rank 1 of 4 …".
    exit_status : int or None
        Exit status of the process; None if a signal ended it or its worker vanished.
    signal : int or None
        The signal that ended the process, or None.
    remote_traceback : str
        Traceback of the exception on the rank; empty if there was none.
    last_lines : tuple of str
        The last lines that the rank printed.
    """

    def __init__(
        self,
        rank: int,
        size: int,
        host: str,
        worker: str,
        reason: str,
        exit_status: int | None = None,
        signal: int | None = None,
        remote_traceback: str = "",
        last_lines: tuple[str, ...] = (),
    ) -> None:
        self.rank = rank
        self.size = size
        self.host = host
        self.worker = worker
        self.reason = reason
        self.exit_status = exit_status
        self.signal = signal
        self.remote_traceback = remote_traceback
        self.last_lines = tuple(last_lines)
        super().__init__(
            rank, size, host, worker, reason, exit_status, signal, remote_traceback, self.last_lines
        )

    @property
    def headline(self) -> str:
        """What happened, in one sentence."""
        return f"rank {self.rank} of {self.size} on {self.host} (worker {self.worker}) {self.reason}"

    def __str__(self) -> str:
        text = self.headline
        if self.remote_traceback:
            text += f"\n\nOn the rank:\n{self.remote_traceback.rstrip()}"
        if self.last_lines:
            text += "\n\nIts last lines:\n" + "\n".join(f"  {line}" for line in self.last_lines)
        return text


class NotEnoughSlots(DistributedError, TimeoutError):
    """The cluster did not offer as many slots as ranks were asked for, in the time given.

    Attributes
    ----------
    wanted, free, taken : int
        Slots asked for, slots that were free at the end, and slots on workers that other runs hold.
    """

    def __init__(self, message: str, wanted: int, free: int, taken: int) -> None:
        self.wanted = wanted
        self.free = free
        self.taken = taken
        super().__init__(message)

    def __reduce__(self) -> tuple[type[NotEnoughSlots], tuple[str, int, int, int]]:
        return type(self), (str(self), self.wanted, self.free, self.taken)


class CannotListen(DistributedError, OSError):
    """The rendezvous has no place to listen: no free port in the range, or no such network interface."""


class CheckpointDamaged(DistributedError, RuntimeError):
    """None of the checkpoints in a folder is what was written."""


class HorovodMissing(DistributedError, ImportError):
    """Horovod, built for TensorFlow, cannot be imported where a rank runs."""


class NotSynchronised(DistributedError, RuntimeError):
    """Variables that must be equal on all ranks are not.

    Attributes
    ----------
    variables : tuple of str
        Paths of the variables that differ.
    """

    def __init__(self, variables: tuple[str, ...]) -> None:
        self.variables = tuple(variables)
        super().__init__(self.variables)

    def __str__(self) -> str:
        return (
            "these variables differ between ranks: "
            + ", ".join(self.variables)
            + ". Either they were not broadcast at the start, or an optimizer that does not reduce its "
            "gradients was used."
        )


def signal_name(number: int) -> str:
    """Return ``"SIGKILL"`` for 9, or ``"signal 99"`` where the number has no name."""
    try:
        return signals.Signals(number).name
    except ValueError:
        return f"signal {number}"

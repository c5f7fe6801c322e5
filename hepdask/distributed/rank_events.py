"""What the driver is told of while ranks run: by the task of each rank, and by the scheduler of workers it lost.

Dask passes events on as they are and knows no classes, so they travel pickled.
"""

from __future__ import annotations

import signal as signals
from dataclasses import dataclass

LONGEST_HEADLINE = 1000  # characters of an exception's first line

#: Exceptions by which a rank says that it lost another one, by qualified name.
_OF_A_LOST_RANK = {
    "horovod.common.exceptions.HorovodInternalError",
    "hepdask.distributed.local_allreduce.NeighbourLost",
    "hepdask.distributed.rank_process.OthersMissing",
}

#: Packages whose exceptions pass on what compiled code says, whatever it is about: there the words must tell.
_PASS_ON = {"tensorflow", "xgboost"}

#: What compiled code says of a lost rank, in such an exception, or in print before it ends the process.
_WORDS_OF_A_LOST_RANK = (
    "Horovod has been shut down",
    "gloo/transport",
    "Connection closed by peer",
    "Collective ops is aborted",
    "src/collective/",  # XGBoost's
    "Another worker is running into error",
)


@dataclass(frozen=True)
class Raised:
    """An exception of a rank, as far as it can be told where its class may be unknown.

    Attributes
    ----------
    name : str
        Qualified name of its class.
    message : str
        What it says, shortened.
    """

    name: str
    message: str

    @property
    def headline(self) -> str:
        """Class and first line, as Python prints them."""
        kind, first_line = self.name.rpartition(".")[2], self.message.partition("\n")[0][:LONGEST_HEADLINE]
        return f"{kind}: {first_line}" if first_line else kind

    @property
    def package(self) -> str:
        """The package that its class belongs to."""
        return self.name.partition(".")[0]

    def tells_of_a_lost_rank(self) -> bool:
        """Whether it was raised because another rank is gone."""
        return self.name in _OF_A_LOST_RANK or (
            self.package in _PASS_ON and any(words in self.message for words in _WORDS_OF_A_LOST_RANK)
        )


@dataclass(frozen=True)
class Failure:
    """Why a rank failed.

    Attributes
    ----------
    reason : str
        The end of the sentence "rank 1 of 4 …".
    exit_status, signal : int or None
        How its process ended.
    raised : tuple of Raised
        The exception that ended its function, and those that led to it; empty if there was none.
    exception : bytes or None
        The first of them, pickled, if it can be.
    traceback : str
        Its traceback.
    last_lines : tuple of str
        What the rank printed last.
    was_ended : bool
        Its process was ended since its task was cancelled or its worker closes.
    """

    reason: str
    exit_status: int | None = None
    signal: int | None = None
    raised: tuple[Raised, ...] = ()
    exception: bytes | None = None
    traceback: str = ""
    last_lines: tuple[str, ...] = ()
    was_ended: bool = False

    def is_consequence(self) -> bool:
        """Whether something else must have failed first."""
        if self.was_ended or any(one.tells_of_a_lost_rank() for one in self.raised):
            return True
        aborted = not self.raised and (self.signal == signals.SIGABRT or bool(self.exit_status))
        return aborted and any(words in line for line in self.last_lines for words in _WORDS_OF_A_LOST_RANK)


@dataclass(frozen=True)
class Started:
    """The task of a rank has begun."""

    rank: int


@dataclass(frozen=True)
class Printed:
    """A rank has printed some lines."""

    rank: int
    lines: list[str]


@dataclass(frozen=True)
class Ended:
    """The process of a rank is gone: it succeeded, failed or was ended.

    Attributes
    ----------
    rank : int
        Which.
    time : float
        When [s since 1970], by the clock of its host.
    failure : Failure or None
        None if its function returned.
    """

    rank: int
    time: float
    failure: Failure | None


@dataclass(frozen=True)
class WorkerLost:
    """A worker of the run has left the cluster.

    Attributes
    ----------
    worker : str
        Its address.
    """

    worker: str


Event = Started | Printed | Ended | WorkerLost

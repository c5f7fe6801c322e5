"""What ranks tell the driver while they train: one line each among what they print."""

from __future__ import annotations

import dataclasses
import json
import typing
from dataclasses import dataclass
from typing import Any

_BEGIN = '{"hepdask": "'


@dataclass(frozen=True)
class Started:
    """Training starts, or goes on after a failure.

    Attributes
    ----------
    events : int
        In the training split.
    total : int
        Events that all epochs together take.
    done : int
        Those of epochs that were done before.
    engine_name : str
        How the steps are computed, in words.
    """

    events: int
    total: int
    done: int
    engine_name: str


@dataclass(frozen=True)
class Progress:
    """So many events have been learned from, those of earlier epochs included."""

    done: int


@dataclass(frozen=True, kw_only=True)
class EpochDone:
    """An epoch is over.

    Attributes
    ----------
    epochs : int
        How many there will be.
    epoch : int
        Which one it was, from 1.
    loss, accuracy : float
        Means over the events of the training split.
    val_loss, val_accuracy : float or None
        The same for the validation split; None where it is empty.
    learning_rate : float
        Of the epoch.
    events_per_second : float
        Of all ranks together.
    seconds : float
        Which the training events took.
    """

    epochs: int
    epoch: int
    loss: float
    accuracy: float
    val_loss: float | None = None
    val_accuracy: float | None = None
    learning_rate: float
    events_per_second: float
    seconds: float

    def row(self) -> dict[str, float]:
        """Return the epoch as it stands in the history of a model: all there is but the number of epochs."""
        fields = dataclasses.asdict(self)
        del fields["epochs"]
        return {name: value for name, value in fields.items() if value is not None}


@dataclass(frozen=True)
class RankRate:
    """Events per second of one rank over the last epoch."""

    rank: int
    events_per_second: float


Message = Started | Progress | EpochDone | RankRate

_KINDS: dict[str, type[Message]] = {kind.__name__: kind for kind in typing.get_args(Message)}


def line_of(message: Message) -> str:
    """Return a message as one line of text, without its end."""
    return json.dumps({"hepdask": type(message).__name__, **dataclasses.asdict(message)})


def parse(line: str) -> Message | None:
    """Return the message that a line is; None if it is none, or a damaged one: that is output like any other."""
    if not line.startswith(_BEGIN):
        return None
    try:
        fields = json.loads(line)
        kind = _KINDS[fields.pop("hepdask")]
        message = kind(**fields)
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return message if _has_right_types(message) else None


def _has_right_types(message: Message) -> bool:
    hints = typing.get_type_hints(type(message))
    return all(_is_a(getattr(message, name), hint) for name, hint in hints.items())


def _is_a(value: Any, hint: Any) -> bool:
    kinds = typing.get_args(hint) or (hint,)
    return type(value) in kinds or (float in kinds and type(value) is int)

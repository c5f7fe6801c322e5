"""A trained model as a function from events to scores: all it needs stands in its folder.

Nothing here knows how a model was trained; how each kind of file is read stands in `_SCORERS`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import awkward as ak
import numpy as np
from numpy.typing import NDArray

from hepdask.artifacts import read_json
from hepdask.config import Config, Physics, load_config
from hepdask.errors import ConfigError, InputError
from hepdask.features import Extracted, extract, on_usable, reasons
from hepdask.store import Events
from hepdask.store.writer import round_mantissa
from hepdask.trees import SavedTrees

#: What may differ between the files a model was trained on and those it scores.
_CHANGEABLE = ("physics.branches", "physics.collections")


class Scorer(Protocol):
    """Scores events whose features are there."""

    def scores(self, events: Events) -> NDArray[np.float32]:
        """Give class probabilities (n, classes)."""


def _network(file: Path, record: Mapping[str, Any], physics: Physics) -> Scorer:
    try:
        from hepdask.learners.saved import SavedNetwork
    except ImportError as error:
        raise InputError(
            f"{file}: a network needs TensorFlow ({error}): pip install 'hepdask[train]'"
        ) from None
    return SavedNetwork(file.read_bytes(), record, physics.max_particles)


def _trees(file: Path, record: Mapping[str, Any], physics: Physics) -> Scorer:
    return SavedTrees(file.read_bytes(), record["inputs"]["high_level"])


#: Name of a model's file to what makes a scorer of it.
_SCORERS: dict[str, Callable[[Path, Mapping[str, Any], Physics], Scorer]] = {
    "model.keras": _network, "model.ubj": _trees, "model.npz": _trees,
}  # fmt: skip


class Classifier:
    """A trained model; see `load_model`.

    Attributes
    ----------
    name : str
        Which model it is.
    classes : list of str
        Names of the classes, in the order of the scores.
    physics : Physics
        Selection and features, as in training.
    record : dict
        What ``training.json`` holds.

    Notes
    -----
    Several threads may use one object; they take turns at the network.
    """

    def __init__(self, folder: Path, record: dict[str, Any], physics: Physics) -> None:
        self.name: str = record["model"]
        self.classes: list[str] = record["classes"]
        self.physics = physics
        self.record = record
        file = model_file(folder)
        if record.get("imported"):
            raise InputError(
                f"{folder}: trained on imported events, and nobody knows how those were scaled, so it cannot score "
                "others; train on a store that hepdask prepare made"
            )
        self._scorer = _SCORERS[file.name](file, record, physics)
        self._turn = threading.Lock()

    def __repr__(self) -> str:
        return f"<Classifier {self.name!r}: {', '.join(self.classes)}>"

    def predict(self, events: ak.Array) -> NDArray[np.float32]:
        """Score events.

        Parameters
        ----------
        events : ak.Array
            Record array of events (awkward, uproot, or NanoEvents with `DelphesSchema`), as `hepdask.features` takes.

        Returns
        -------
        float32 (n_events, n_classes)
            Probabilities of the classes; NaN where the selection rejects the event.

        Raises
        ------
        KeyError
            A collection or field is missing.
        hepdask.features.BadEvent
            A value is not finite, or a pT is negative.
        """
        return self._scored(extract(events, self.physics))

    def judge(self, events: ak.Array) -> tuple[NDArray[np.float32], NDArray[np.int16]]:
        """Score events, and say why some have no score; one with a bad value does not stop the others.

        Parameters
        ----------
        events : ak.Array
            As in `predict`.

        Returns
        -------
        scores : float32 (n_events, n_classes)
            As in `predict`; NaN also where a value is bad.
        reason : int16 (n_events,)
            Places in `reasons`; 0 for an event with scores.

        Raises
        ------
        KeyError
            A collection or field is missing.
        """
        extracted, usable, _ = on_usable(lambda some: extract(some, self.physics), events)
        scores = np.full((len(events), len(self.classes)), np.nan, np.float32)
        reason = np.full(len(events), reasons.NOT_USABLE, np.int16)
        scores[usable], reason[usable] = self._scored(extracted), extracted.reason
        return scores, reason

    @property
    def reasons(self) -> list[str]:
        """What the codes of `judge` mean."""
        return reasons.words(self.physics)

    def _scored(self, extracted: Extracted) -> NDArray[np.float32]:
        selected = extracted.selected
        scores = np.full((len(selected), len(self.classes)), np.nan, np.float32)
        with self._turn:
            scores[selected] = self._scorer.scores(self._events(extracted))
        return scores

    def _events(self, extracted: Extracted) -> Events:
        """Bring features into the form in which the store would have kept them."""
        bits = self.record.get("mantissa_bits", 23)
        particles = {
            name: round_mantissa(column, bits) if column.dtype == np.float32 else column
            for name, column in extracted.particles.values.items()
        }
        none = np.zeros(len(extracted.high_level), np.int64)
        return Events(
            extracted.particles.offsets, particles, extracted.high_level.astype(np.float32), none, none, none
        )


def load_model(path: str | Path, overrides: Mapping[str, Any] | None = None) -> Classifier:
    """Load a trained model.

    Parameters
    ----------
    path : str or Path
        The folder ``models/NAME`` of a run, or the model's file in it.
    overrides : mapping, optional
        ``{"physics.branches": …}`` or ``{"physics.collections.muon": …}`` where the events to be scored are called
        otherwise than those the model was trained on.

    Returns
    -------
    Classifier

    Raises
    ------
    InputError
        There is no trained model.
    ConfigError
        An override is none of those above.

    Examples
    --------
    >>> model = hepdask.load_model("runs/demo/models/inclusive")
    >>> scores = model.predict(events)
    """
    folder, record = find(path)
    return Classifier(folder, record, configuration(record, overrides).physics)


def find(path: str | Path) -> tuple[Path, dict[str, Any]]:
    """Find the folder of a trained model, and read its ``training.json``; an InputError where there is none."""
    folder = Path(path)
    folder = folder.parent if folder.is_file() else folder
    record = read_json(folder / "training.json")
    if record is None:
        inside = sorted(folder.glob("models/*/training.json")) or sorted(folder.glob("*/training.json"))
        hint = f"there are: {', '.join(str(file.parent) for file in inside)}" if inside else "train one first"
        raise InputError(f"{path}: not the folder of a trained model (models/NAME in a run); {hint}")
    model_file(folder)
    return folder, record


def model_file(folder: Path) -> Path:
    """Find the file of a model in its folder; an InputError where there is none."""
    for name in _SCORERS:
        if (folder / name).exists():
            return folder / name
    raise InputError(
        f"{folder}: not complete, there is no {' or '.join(_SCORERS)}; go on with: hepdask train CONFIG"
    )


def configuration(record: Mapping[str, Any], overrides: Mapping[str, Any] | None) -> Config:
    """Give the configuration under which a model sees new files: its own physics, and what was overridden.

    Raises
    ------
    ConfigError
        An override would change the physics that the model was trained on.
    """
    for key in overrides or {}:
        section, _, _ = key.partition(".")
        allowed = any(key == one or key.startswith(f"{one}.") for one in _CHANGEABLE)
        if section not in ("store", "cluster") and not allowed:
            raise ConfigError(
                f"{key}: a model is used with the settings it was trained with; only {', '.join(_CHANGEABLE)}, store.* "
                "and cluster can be set here"
            )
    return load_config(None, {"physics": dict(record["physics"]), **(overrides or {})})

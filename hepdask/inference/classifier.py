"""A trained model as a function from events to scores: all it needs stands in its folder.

Nothing here knows how a model was trained; how each kind of file is read stands in `_SCORERS`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import awkward as ak
import numpy as np
from numpy.typing import NDArray

from hepdask.analysis import cutflow
from hepdask.analysis.bad_events import on_usable
from hepdask.analysis.topology import Extracted, extract
from hepdask.config import Config, Topology, load_config
from hepdask.config.user_functions import Code, UserFunction, read_code
from hepdask.errors import ConfigError, InputError, InputNotFound
from hepdask.extras import require
from hepdask.files.paths import local_path
from hepdask.inference.scorer import Scorer
from hepdask.inference.tree_scorer import TreeScorer
from hepdask.models.record import CODE, RECORD, ModelRecord, read_model, read_record
from hepdask.store import Events
from hepdask.store.writer import round_mantissa

#: What may differ between the files a model was trained on and those it scores.
_CHANGEABLE = ("analysis.branches", "analysis.collections")


def _network(content: bytes, record: ModelRecord, file: Path) -> Scorer:
    from hepdask.inference.network_scorer import NetworkScorer

    return NetworkScorer(content, record, file)


def _trees(content: bytes, record: ModelRecord, file: Path) -> Scorer:
    return TreeScorer(content, record, file)


#: Name of a model's file to what makes a scorer of it.
_SCORERS: dict[str, Callable[[bytes, ModelRecord, Path], Scorer]] = {
    "model.keras": _network, "model.ubj": _trees, "model.npz": _trees,
}  # fmt: skip

#: Name of a model's file to the extra that reads it; the core reads the others.
_EXTRAS = {"model.keras": "train", "model.ubj": "trees"}


def require_library(record: ModelRecord, folder: Path) -> None:
    """Refuse a model whose library is not installed.

    Raises
    ------
    MissingDependency
        The message names the extra.
    """
    if record.file in _EXTRAS:
        require(_EXTRAS[record.file], str(folder / record.file))


class Classifier:
    """A trained model; see `load_model`.

    Attributes
    ----------
    name : str
        Which model it is.
    classes : list of str
        Names of the classes, in the order of the scores.
    analysis : Topology
        Selection and features, as in training.
    record : ModelRecord
        What ``training.json`` holds.

    Notes
    -----
    Several threads may use one object; they take turns at the network.
    """

    def __init__(self, folder: Path, record: ModelRecord, analysis: Topology) -> None:
        self.name: str = record.model
        self.classes = list(record.classes)
        self.analysis = analysis
        self.record = record
        if record.imported:
            raise InputError(
                f"{folder}: trained on imported events, whose scaling is unknown, so it cannot score "
                "others; train on a store that hepdask prepare made"
            )
        require_library(record, folder)
        self._scorer = _SCORERS[record.file](read_model(folder, record), record, folder / record.file)
        self._turn = threading.Lock()

    def __repr__(self) -> str:
        return f"<Classifier {self.name!r}: {', '.join(self.classes)}>"

    def predict(self, events: ak.Array) -> NDArray[np.float32]:
        """Score events.

        Parameters
        ----------
        events : ak.Array
            Record array of events (awkward, uproot, or NanoEvents with `DelphesSchema`), as `hepdask.topology` takes.

        Returns
        -------
        float32 (n_events, n_classes)
            Probabilities of the classes; NaN where the selection rejects the event.

        Raises
        ------
        KeyError
            A collection or field is missing.
        hepdask.analysis.columns.BadEvent
            A value is not finite, or a pT is negative.
        """
        return self._scored(extract(events, self.analysis))

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
            Places in `cutflow.words`; 0 for an event with scores.

        Raises
        ------
        KeyError
            A collection or field is missing.
        """
        extracted, usable, _ = on_usable(lambda some: extract(some, self.analysis), events)
        scores = np.full((len(events), len(self.classes)), np.nan, np.float32)
        reason = np.full(len(events), cutflow.NOT_USABLE, np.int16)
        scores[usable], reason[usable] = self._scored(extracted), extracted.reason
        return scores, reason

    @property
    def reasons(self) -> list[str]:
        """What the codes of `judge` mean."""
        return cutflow.words(self.analysis)

    def _scored(self, extracted: Extracted) -> NDArray[np.float32]:
        selected = extracted.selected
        scores = np.full((len(selected), len(self.classes)), np.nan, np.float32)
        with self._turn:
            scores[selected] = self._scorer.scores(self._events(extracted))
        return scores

    def _events(self, extracted: Extracted) -> Events:
        """Bring features into the form in which the store would have kept them."""
        bits = self.record.mantissa_bits
        particles = {
            name: round_mantissa(column, bits) if column.dtype == np.float32 else column
            for name, column in extracted.particles.values.items()
        }
        none = np.zeros(len(extracted.high_level), np.int64)
        return Events(
            extracted.particles.offsets, particles, extracted.high_level.astype(np.float32), none, none, none
        )


def load_model(
    path: str | Path, overrides: Mapping[str, Any] | None = None, code: Sequence[str | Path] = ()
) -> Classifier:
    """Load a trained model.

    Parameters
    ----------
    path : str or Path
        The folder ``models/NAME`` of a run, or the model's file in it.
    overrides : mapping, optional
        ``{"analysis.branches": …}`` or ``{"analysis.collections.muon": …}`` where the events to be scored are called
        otherwise than those the model was trained on.
    code : sequence of str or Path
        Where the model needs functions of the user: their files, or ``"package.module"``, which are run. They must be
        what the model was trained with. ``MODEL/code/…`` is what training kept of them.

    Returns
    -------
    Classifier

    Raises
    ------
    InputError
        There is no trained model.
    MissingDependency
        The library of the model is not installed.
    HepdaskError
        The folder is damaged, or what is in it does not fit together.
    ConfigError
        An override is none of those above, code is needed that `code` does not name, or is another.

    Examples
    --------
    >>> model = hepdask.load_model("runs/demo/models/inclusive")
    >>> scores = model.predict(events)
    """
    folder, record = find(path)
    return Classifier(folder, record, configuration(folder, record, overrides, code).analysis)


def find(path: str | Path) -> tuple[Path, ModelRecord]:
    """Find the folder of a trained model, and read its record; an InputError where there is none."""
    given = folder = local_path(path)
    folder = folder.parent if folder.is_file() else folder
    record = read_record(folder)
    if record is None:
        inside = sorted(folder.glob(f"models/*/{RECORD}")) or sorted(folder.glob(f"*/{RECORD}"))
        hint = f"there are: {', '.join(str(file.parent) for file in inside)}" if inside else "train one first"
        raise InputNotFound(f"{given}: not the folder of a trained model (models/NAME in a run); {hint}")
    return folder, record


def configuration(
    folder: Path,
    record: ModelRecord,
    overrides: Mapping[str, Any] | None = None,
    code: Sequence[str | Path] = (),
) -> Config:
    """Give the configuration under which a model sees new files: its own analysis, and what was overridden.

    Raises
    ------
    ConfigError
        An override would change the physics that the model was trained on, or code is not named, or not the right one.
    """
    for key in overrides or {}:
        section, _, _ = key.partition(".")
        allowed = any(key == one or key.startswith(f"{one}.") for one in _CHANGEABLE)
        if section not in ("input", "store", "cluster") and not allowed:
            raise ConfigError(
                f"{key}: a model is used with the settings it was trained with; only {', '.join(_CHANGEABLE)}, "
                "input.*, store.* and cluster can be set here"
            )
    found = _code_that_may_run(folder, record, code)
    analysis = record.analysis.model_dump(mode="json")
    for key in ("selections", "features"):
        functions: dict[str, UserFunction] = getattr(record.analysis, key)
        analysis[key] = {
            name: UserFunction(function.reference, found[function.where])
            for name, function in functions.items()
        }
    return load_config(None, {"analysis": analysis, **(overrides or {})})


def _code_that_may_run(folder: Path, record: ModelRecord, code: Sequence[str | Path]) -> dict[str, Code]:
    """Give the code of a model's functions by what training called it: only what the user names here is run."""
    recorded = ", ".join(f"{one.reference} (source {one.digest[:12]})" for one in record.code)
    given: dict[str, Code] = {}
    for one in map(read_code, map(str, code)):
        if one.digest not in {kept.digest for kept in record.code}:
            wanted = f"it was trained with {recorded}" if recorded else "it needs no code; leave out --code"
            raise ConfigError(
                f"{one.path} (source {one.short}) is not the code of {folder}: {wanted}"
                + (f"; the copy kept by training is in {folder / CODE}" if recorded else "")
            )
        given[one.digest] = one
    missing = [kept for kept in record.code if kept.digest not in given]
    if missing:
        functions = (*record.analysis.selections.values(), *record.analysis.features.values())
        needed = "; ".join(
            f"{', '.join(sorted({one.name for one in functions if one.where == kept.reference}))} of {kept.reference}"
            for kept in missing
        )
        yours = " ".join(f"--code {kept.reference}" for kept in missing)
        kept_files = " ".join(f"--code {folder / kept.kept}" for kept in missing if kept.kept)
        raise ConfigError(
            f"{folder}: the model needs functions that it was trained with: {needed}. Name your own files ({yours}; in "
            f"Python code=[…])"
            + (
                f", or, if you trust who made the model, the copy that came with it ({kept_files})"
                if kept_files
                else ""
            )
        )
    return {kept.reference: given[kept.digest] for kept in record.code}

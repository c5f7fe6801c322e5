"""What a model's folder says of the model: ``training.json``, checked before anything else in the folder is looked at.

The record is sealed by a digest, and holds those of the model's file and of the source of the user's functions. A
folder may come from somebody else, so a right seal is not enough: what the record says must fit together, too.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import numpy as np
from pydantic import BeforeValidator, Field, ValidationError, model_validator

from hepdask.analysis.scaling import Scaler
from hepdask.analysis.topology.conventions import CONVENTIONS
from hepdask.config import ModelName, Section, Topology
from hepdask.config.feature_names import PARTICLE
from hepdask.config.user_functions import UserFunction
from hepdask.errors import InputError
from hepdask.files import atomic
from hepdask.models.kinds import settings_type, takes

#: Name of the record in the folder of a model.
RECORD = "training.json"

#: Folder of the source of the user's functions.
CODE = "code"

Input = Literal["high_level", "particles"]
FileName = Literal["model.keras", "model.ubj", "model.npz"]

_LARGEST = float(np.finfo(np.float32).max)
Single = Annotated[float, Field(ge=-_LARGEST, le=_LARGEST)]
NotNegative = Annotated[float, Field(ge=0, le=_LARGEST)]
Place = Annotated[int, Field(ge=0, strict=True)]


class Scaling(Section):
    """How features are scaled: (value - shift) * factor."""

    shift: tuple[Single, ...]
    factor: tuple[NotNegative, ...]  # 0 for a constant feature

    @model_validator(mode="after")
    def _as_many(self) -> Scaling:
        if len(self.shift) != len(self.factor):
            raise ValueError(f"{len(self.shift)} shifts and {len(self.factor)} factors")
        return self

    @classmethod
    def of(cls, scaler: Scaler) -> Scaling:
        """Write a scaler down."""
        return cls.model_validate(scaler.to_json())

    def scaler(self) -> Scaler:
        """Give the function."""
        return Scaler(np.array(self.shift, np.float32), np.array(self.factor, np.float32))


class Scalings(Section):
    """Scaling of all features, of which a network may take some."""

    high_level: Scaling
    particles: (
        Scaling | None
    )  # None where particles are standardised event by event, and where all is scaled already


class KeptCode(Section):
    """Where functions of the user came from."""

    reference: str  # the file or module, as the configuration named it
    name: str
    digest: str
    kept: str | None  # the file below the folder of the model; None for an installed module


def _not_resolved(document: Any) -> Any:
    """Leave references to functions as they are: whether they may be run, the reader has to say."""
    if not isinstance(document, Mapping):
        return document
    found = dict(document)
    for key in ("selections", "features"):
        if isinstance(functions := found.get(key), Mapping):
            found[key] = {
                name: UserFunction(reference, None) if isinstance(reference, str) else reference
                for name, reference in functions.items()
            }
    return found


class ModelRecord(Section):
    """What ``training.json`` holds.

    Attributes
    ----------
    key : str
        Digest of everything the training depended on.
    model : str
        Which model.
    file, file_digest : str
        The saved model: ``model.keras``, XGBoost's ``model.ubj``, or ``model.npz`` (a forest of scikit-learn); BLAKE2b
        of its bytes.
    classes : tuple of str
        In the order of the scores.
    inputs : dict of tuple of int
        Columns of each input that the model takes.
    settings : dict
        Section of the configuration.
    study : dict or None
        Those of them that a study chose.
    analysis : Topology
        Selection and features; functions of the user are named, and cannot be called.
    code : tuple of KeptCode
        Where these functions came from.
    imported : bool
        Trained on imported events.
    mantissa_bits : int
        As in the store.
    scaling : Scalings
        Of all features, fitted in training.
    history : tuple of dict
        One entry an epoch, or a round of boosting; empty for a forest.
    importances : dict of float
        Of trees: share of each feature in what the splits gained.
    facts : dict
        Lines of the report.
    """

    key: str
    model: ModelName
    file: FileName
    file_digest: str
    classes: Annotated[tuple[str, ...], Field(min_length=2)]
    inputs: dict[Input, Annotated[tuple[Place, ...], Field(min_length=1)]]
    settings: dict[str, Any]
    study: dict[str, Any] | None
    analysis: Annotated[Topology, BeforeValidator(_not_resolved)]
    code: tuple[KeptCode, ...]
    imported: bool
    mantissa_bits: Annotated[int, Field(ge=4, le=23)]
    scaling: Scalings
    history: tuple[dict[str, int | float], ...]
    importances: dict[str, float]
    facts: dict[str, Any]

    @property
    def identity(self) -> str:
        """Digest of all of it: which model this is, and which training of it."""
        return atomic.digest(self.model_dump(mode="json"))

    @model_validator(mode="after")
    def _fits_together(self) -> ModelRecord:
        functions = (*self.analysis.selections.values(), *self.analysis.features.values())
        if {function.where for function in functions} != {one.reference for one in self.code}:
            raise ValueError("code: it is not that of analysis.selections and analysis.features")
        if self.file not in settings_type(self.model).files:
            raise ValueError(f"file: {self.model} is not kept as {self.file}")
        if self.classes != self.analysis.classes:
            raise ValueError(f"classes: they are not analysis.classes ({', '.join(self.analysis.classes)})")
        if len(set(self.classes)) != len(self.classes):
            raise ValueError(f"classes: one is repeated ({', '.join(self.classes)})")
        if set(self.inputs) != takes(self.model):
            raise ValueError(f"inputs: {self.model} takes {' and '.join(sorted(takes(self.model)))}")
        widths = {"high_level": len(self.analysis.high_level_features), "particles": len(PARTICLE)}
        for name, places in self.inputs.items():
            if max(places) >= widths[name]:
                raise ValueError(f"inputs.{name}: column {max(places)} of {widths[name]}, counted from 0")
            if len(set(places)) != len(places):
                raise ValueError(f"inputs.{name}: a column is repeated")
        by_event = CONVENTIONS[self.analysis.convention].scales_by_event
        if "particles" in self.inputs and (self.scaling.particles is None) != by_event:
            raise ValueError(
                f"scaling.particles: does not fit analysis.convention {self.analysis.convention}"
            )
        for name in get_args(Input):
            scaling = getattr(self.scaling, name)
            if scaling and len(scaling.shift) != widths[name]:
                raise ValueError(
                    f"scaling.{name}: of {len(scaling.shift)} features, there are {widths[name]}"
                )
        try:
            settings_type(self.model).model_validate(self.settings)
        except ValidationError as error:
            raise ValueError(f"settings: {_first(error)}") from None
        return self


def file_digest(content: bytes) -> str:
    """Digest of a model's file."""
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def write_model(folder: Path, record: ModelRecord, content: bytes) -> None:
    """Write a model's file and its record, the record last: it never stands beside another file than its own."""
    (folder / RECORD).unlink(missing_ok=True)
    for other in get_args(FileName):
        if other != record.file:
            (folder / other).unlink(missing_ok=True)
    atomic.write_bytes(folder / record.file, content)
    atomic.write_sealed(folder / RECORD, record.model_dump(mode="json"))


def read_record(folder: Path) -> ModelRecord | None:
    """Read the record of a model; None where there is none.

    Raises
    ------
    HepdaskError
        It is not what was written, or what it says does not fit together.
    """
    file = folder / RECORD
    document = atomic.read_sealed(file)
    if document is None:
        return None
    try:
        return ModelRecord.model_validate(document)
    except ValidationError as error:
        raise InputError(f"{file}: not the record of a model that can be used: {_first(error)}") from None


def read_model(folder: Path, record: ModelRecord) -> bytes:
    """Read a model's file, and make sure that it is the one of the record, before any library sees it.

    Raises
    ------
    InputError
        It is not there, or not what was written.
    """
    file = folder / record.file
    try:
        content = file.read_bytes()
    except FileNotFoundError:
        raise InputError(
            f"{folder}: not complete, there is no {record.file}; continue with: hepdask train CONFIG"
        ) from None
    except OSError as error:
        raise InputError(f"{file}: cannot be read: {error.strerror}") from None
    if file_digest(content) != record.file_digest:
        raise InputError(
            f"{file}: damaged, it is not what {RECORD} beside it says; copy the folder again, or remove it and train "
            "again"
        )
    return content


def _first(error: ValidationError) -> str:
    problem = error.errors()[0]
    where = ".".join(str(part) for part in problem["loc"])
    what = problem["msg"].removeprefix("Value error, ")
    return f"{where}: {what}" if where else what

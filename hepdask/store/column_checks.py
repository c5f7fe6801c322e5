"""Manifests that others wrote: of the form that the reader relies on, or refused."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, Field, ValidationError

from hepdask.analysis.topology.conventions import CONVENTIONS
from hepdask.config import Split
from hepdask.config.feature_names import PARTICLE

_LARGEST = 2**40

_Count = Annotated[int, Field(strict=True, ge=0, lt=_LARGEST)]
_Text = Annotated[str, Field(strict=True)]


def _name(text: str) -> str:
    if text.startswith(".") or any(letter in text for letter in "/\\\0") or not text:
        raise ValueError("the name of a part leads out of the store")
    return text


def _convention(text: str) -> str:
    if text not in CONVENTIONS:
        raise ValueError(f"there is no such convention; there are: {', '.join(CONVENTIONS)}")
    return text


class _Part(BaseModel):
    name: Annotated[str, Field(strict=True, max_length=240), AfterValidator(_name)]
    dataset: _Text
    file: _Text
    uuid: _Text
    start: _Count
    stop: _Count
    events: _Count
    particles: _Count
    label: _Count
    checksums: dict[str, _Text]


class _Moments(BaseModel):
    count: _Count
    width: _Count | None = None
    mean: list[float] = []
    squares: list[float] = []
    low: list[float] = []
    high: list[float] = []


class _AllMoments(BaseModel):
    particles: _Moments
    high_level: _Moments
    high_level_all: _Moments


class _Physics(BaseModel):
    convention: Annotated[str, AfterValidator(_convention)]


class _Row(BaseModel):
    dataset: _Text
    label: _Text
    files: _Count
    events_read: _Count
    events_selected: _Count
    files_lost: _Count
    events_lost: _Count


class _Manifest(BaseModel):
    classes: list[_Text]
    high_level_features: list[_Text]
    max_particles: _Count
    split: Split
    analysis: _Physics
    moments: _AllMoments
    selection: list[_Row]
    notes: list[_Text]
    parts: list[_Part]
    written: _Text
    versions: dict[str, str]
    imported: Literal[True] | None = None


def fault(manifest: dict[str, Any]) -> str | None:
    """Say what of a manifest is not as `manifest.manifest` makes it; None where all is."""
    try:
        _Manifest.model_validate(manifest)
    except ValidationError as error:
        first = error.errors()[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    width = len(manifest["high_level_features"])
    for kind in ("particles", "high_level", "high_level_all"):
        moments = manifest["moments"][kind]
        expected = len(PARTICLE) if kind == "particles" else width
        columns = [moments[key] for key in ("mean", "squares", "low", "high") if moments["count"]]
        lengths = {len(column) for column in columns} if columns else {moments.get("width")}
        if lengths != {expected}:
            return f"moments.{kind}: not of {expected} features"
    seen: set[str] = set()
    for part in manifest["parts"]:
        if part["label"] >= len(manifest["classes"]):
            return (
                f"parts: {part['name']} is of class {part['label']}, and there are {len(manifest['classes'])}"
            )
        if part["name"] in seen:
            return f"parts: {part['name']} is there twice"
        seen.add(part["name"])
    return None

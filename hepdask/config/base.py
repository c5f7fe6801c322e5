"""What all sections of the configuration are made of: closed, immutable models, and the kinds of numbers and names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from hepdask.config.user_names import usable, usable_dataset
from hepdask.files.paths import resolved

Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(gt=0, lt=2**31)]
Port = Annotated[int, Field(gt=0, lt=2**16)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Share = Annotated[float, Field(gt=0, le=1)]
#: The name of something of the user's: it stands in reports, and in the names of files.
Name = Annotated[str, AfterValidator(usable)]
DatasetName = Annotated[str, AfterValidator(usable_dataset)]
#: A path on this machine's file systems, or a URL.
LocalPath = Annotated[str, AfterValidator(resolved)]


class Section(BaseModel):
    """A part of the configuration: immutable, and closed to unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    #: Keys of older documents, and what says it now, for the error.
    moved: ClassVar[dict[str, str]] = {}


def shape_of(value: Any) -> str | None:
    """Tell members of unions apart by what a value looks like, so that an error speaks of one of them."""
    if isinstance(value, str) or value is None:
        return "name"
    if isinstance(value, Mapping | BaseModel):
        return "mapping"
    return "list" if isinstance(value, list | tuple) else None

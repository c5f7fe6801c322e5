"""The section `tuning`: which settings of a model are tried."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from hepdask.config.base import Count, Positive, Section, shape_of
from hepdask.config.models import ModelName


class Range(Section):
    """Numbers a parameter may take; whole ones where `low`, `high` and `step` are."""

    low: int | float = Field(description="smallest value")
    high: int | float = Field(description="largest value")
    log: bool = Field(False, description="draw uniformly in the logarithm")
    step: int | float | None = Field(
        None, description="step between values; default: any number, or any whole one"
    )

    @model_validator(mode="after")
    def _rises(self) -> Range:
        if self.low >= self.high:
            raise ValueError(f"low is {self.low}, high only {self.high}")
        if self.log and (self.low <= 0 or self.step is not None):
            raise ValueError("a logarithmic range starts above 0 and has no step")
        if self.step is not None and self.step <= 0:
            raise ValueError(f"step is {self.step}")
        return self


_Searched = Annotated[
    Annotated[list[Any], Tag("list")] | Annotated[Range, Tag("mapping")],
    Discriminator(
        shape_of,
        custom_error_type="searched",
        custom_error_message="give [choices], or {low, high, log, step}",
    ),
]


class Tuning(Section):
    """What `tune` searches, and how."""

    model: ModelName = Field("hlf", description="model to tune")
    parameters: dict[str, _Searched] = Field(
        default_factory=dict,
        description="{key of the model: [choices] or {low, high, log, step}}, for example `hidden: [[50, 20], [100]]`",
    )
    sampler: Literal["tpe", "random", "grid"] = Field(
        "tpe",
        description="`grid` tries every combination; the others draw `trials` settings, `tpe` close to good ones",
    )
    trials: Count = Field(50, description="number of settings that `tpe` and `random` try")
    folds: Annotated[int, Field(ge=2, lt=128)] = Field(5, description="number of folds of the training split")
    metric: Literal["loss", "accuracy"] = Field(
        "loss", description="what to optimise, averaged over the folds"
    )
    prune_after: Count | None = Field(
        None,
        description="folds after which a setting is stopped if it is worse than the median of those before",
    )
    trial_timeout: Positive = Field(86400.0, description="time after which a setting counts as failed [s]")
    worker_timeout: Positive = Field(300.0, description="longest time without any worker [s]")

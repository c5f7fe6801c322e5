"""The section `simulation`: files that are made first."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from hepdask.config.base import Count, Section


class Sample(Section):
    """One file that `hepdask simulate` makes."""

    process: Literal["ttbar", "wjets", "qcd"] = Field(description="physics process")
    events: Count = Field(description="number of events in the file")
    seed: int = Field(1, ge=0, description="seed of all random numbers of the file")
    pileup: float = Field(0.0, ge=0, description="mean number of overlaid minimum-bias collisions")
    enrich: bool = Field(
        True, description="QCD only: generate only events with a hard, loosely isolated lepton"
    )

"""The section `split`: training, validation and test samples."""

from __future__ import annotations

from pydantic import Field

from hepdask.config.base import Fraction, Section


class Split(Section):
    """Which event is trained on, and which is tested on; decided from the event's identity alone."""

    seed: int = Field(1, ge=0, description="seed of split, balance and validation sample")
    test_fraction: Fraction = Field(0.2, description="share of events kept for the test")
    validation_fraction: Fraction = Field(
        0.1, description="share of the training split watched during training, not trained on"
    )
    balance: bool = Field(True, description="train on equally many events of each class")

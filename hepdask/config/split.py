"""The section `split`: training, validation and test samples."""

from __future__ import annotations

from pydantic import Field

from hepdask.config.base import Fraction, Section


class Split(Section):
    """Which event is trained on, and which is tested on; decided from the event's identity alone."""

    seed: int = Field(1, ge=0, description="seed of the split, the balance and the validation sample")
    test_fraction: Fraction = Field(0.2, description="fraction of the events kept for testing")
    validation_fraction: Fraction = Field(
        0.1, description="fraction of the training split used for validation, not for training"
    )
    balance: bool = Field(True, description="train on the same number of events of each class")

"""What a trained model of any kind does: it scores events whose features are there."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from hepdask.store import Events


class Scorer(Protocol):
    """Scores events; `NetworkScorer` and `TreeScorer` are the two kinds."""

    def scores(self, events: Events) -> NDArray[np.float32]:
        """Compute the class probabilities of events.

        Parameters
        ----------
        events : Events
            With the features as the store keeps them.

        Returns
        -------
        float32 (n, classes)
            In the order of the events; probabilities of an event add up to 1.
        """

"""What the scheduler has been told of lately, in the shape in which the page of the dashboard draws it."""

from __future__ import annotations

import time
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

#: Width of the bins in which bytes are counted [s], and how many of them are kept: an hour.
BIN = 5.0
_BINS = 720


@dataclass
class Recent:
    """Sums and histories of the messages of `hepdask.monitoring.metrics.tell`; their size does not grow with the run.

    Attributes
    ----------
    events : dict of str to Counter
        By dataset: events that were selected, rejected, lost.
    read : dict of str to Counter
        By server: compressed bytes since the beginning.
    bins : dict of str to deque of (float, float)
        By server: start of a bin [s since the epoch] and the bytes in it; bins without bytes are missing.
    loss : dict of (str, str) to dict of int to float
        By model and sample (`fit`, `validation`): mean loss of each epoch.
    epochs : dict of str to int
        By model: epochs that are done.
    rates : dict of str to dict of int to float
        By model: events per second of each rank over its last epoch; the model that trains now is the last.
    """

    events: defaultdict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    read: Counter[str] = field(default_factory=Counter)
    bins: dict[str, deque[tuple[float, float]]] = field(default_factory=dict)
    loss: dict[tuple[str, str], dict[int, float]] = field(default_factory=dict)
    epochs: dict[str, int] = field(default_factory=dict)
    rates: dict[str, dict[int, float]] = field(default_factory=dict)

    def take(self, message: Iterable[tuple[str, float, Mapping[str, str]]]) -> None:
        """Add what a message says."""
        for name, amount, labels in message:
            if name == "hepdask_events":
                self.events[labels["dataset"]][labels["outcome"]] += int(amount)
            elif name == "hepdask_read_bytes":
                self._count(labels["server"], amount)
            elif name == "hepdask_training_epoch":
                self._begin(labels["model"], int(amount))
            elif name == "hepdask_training_loss":
                model, sample = labels["model"], labels["sample"]
                self.loss.setdefault((model, sample), {})[self.epochs.get(model, 0)] = amount
            elif name == "hepdask_training_events_per_second":
                model = labels["model"]
                rates = self.rates.pop(model, {})
                self.rates[model] = rates | {int(labels["rank"]): amount}

    def _count(self, server: str, size: float) -> None:
        self.read[server] += int(size)
        start = time.time() // BIN * BIN
        bins = self.bins.setdefault(server, deque(maxlen=_BINS))
        before = bins.pop()[1] if bins and bins[-1][0] == start else 0.0
        bins.append((start, before + size))

    def _begin(self, model: str, epoch: int) -> None:
        """Note an epoch, 0 where training starts; those after it were of an earlier training, or before a restart."""
        self.epochs[model] = epoch
        if not epoch:
            self.rates.pop(model, None)
            return
        for (name, _), losses in self.loss.items():
            if name == model:
                for later in [one for one in losses if one >= epoch]:
                    del losses[later]

    def throughput(self, server: str, now: float | None = None) -> list[tuple[float, float]]:
        """Give time [s since the epoch] and MB/s of every bin that is over, those without bytes too."""
        now = time.time() if now is None else now
        bins = dict(self.bins.get(server, ()))
        if not bins:
            return []
        first, last = min(bins), now // BIN * BIN
        count = min(int((last - first) / BIN), _BINS)
        starts = [last - BIN * behind for behind in range(count, 0, -1)]
        return [(start + BIN / 2, bins.get(start, 0.0) / BIN / 1e6) for start in starts]

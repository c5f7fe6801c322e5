"""Figures that Dask does not know, on the scheduler's ``/metrics`` for Prometheus, and in its log of events.

`tell` sends changes to the scheduler; there `Metrics` adds them up, and draws them on a page of Dask's dashboard. The
package prometheus_client is needed on the scheduler alone; without it, page and log (``client.get_events("hepdask")``)
are there all the same.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import logging
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from distributed import Client, Scheduler
from distributed.diagnostics.plugin import SchedulerPlugin

from hepdask.errors import MissingDependency
from hepdask.monitoring.answers import answer
from hepdask.monitoring.history import Recent

logger = logging.getLogger(__name__)

TOPIC = "hepdask"


@dataclass(frozen=True)
class Metric:
    """One figure.

    Attributes
    ----------
    kind : {"counter", "gauge"}
        A counter is added to, a gauge is set.
    labels : tuple of str
        What it is split by.
    meaning : str
        One sentence.
    """

    kind: Literal["counter", "gauge"]
    labels: tuple[str, ...]
    meaning: str


#: By name; Prometheus adds ``_total`` to counters.
METRICS = {
    "hepdask_events": Metric(
        "counter", ("dataset", "outcome"), "Events of the input: read and selected, read and rejected, or lost."
    ),
    "hepdask_read_bytes": Metric("counter", ("server",), "Compressed bytes requested from a server."),
    "hepdask_training_events_per_second": Metric(
        "gauge", ("model", "rank"), "Rate at which a rank trains, over the last epoch."
    ),
    "hepdask_training_loss": Metric(
        "gauge", ("model", "sample"), "Mean loss over the last epoch: of `fit` and `validation` events."
    ),
    "hepdask_training_epoch": Metric("gauge", ("model",), "Finished epochs."),
}  # fmt: skip


def serve(client: Client) -> None:
    """Let the scheduler add up what `tell` sends, and draw it; where it does so already, nothing happens."""
    try:
        answer(client, lambda: client.register_plugin(Metrics(), name="hepdask-metrics"))
    except ModuleNotFoundError as error:
        logger.warning(f"the scheduler shows neither hepdask's page nor its metrics: {error} there")


def tell(client: Client, changes: Iterable[tuple[str, float, Mapping[str, str]]]) -> None:
    """Add to counters and set gauges, in one message; a scheduler that is gone is no error here.

    Parameters
    ----------
    client : distributed.Client
        The cluster.
    changes : iterable of (str, float, mapping)
        Name of the metric, amount, and its labels.
    """
    message = [[name, amount, dict(labels)] for name, amount, labels in changes]
    with contextlib.suppress(OSError, TimeoutError):
        client.log_event(TOPIC, message)


def bytes_read(read: Mapping[str, float]) -> Iterator[tuple[str, float, Mapping[str, str]]]:
    """Give what `tell` takes, from bytes by server (`traffic.take`)."""
    for server, size in read.items():
        yield "hepdask_read_bytes", size, {"server": server}


def require(client: Client) -> str:
    """Give the address at which Prometheus finds the metrics of a cluster.

    Raises
    ------
    MissingDependency
        The scheduler has no prometheus_client, or no dashboard to serve them.
    """
    port = client.scheduler_info(n_workers=0)["services"].get("dashboard")
    if not answer(client, lambda: client.run_on_scheduler(_can_serve)) or port is None:
        raise MissingDependency(
            "the scheduler cannot serve metrics: install prometheus-client and bokeh where it runs "
            "(pip install 'hepdask[metrics]'), and start it again"
        )
    host = client.scheduler.address.partition("://")[2].rpartition(":")[0]  # type: ignore[union-attr]
    return f"http://{host}:{port}/metrics"


class Metrics(SchedulerPlugin):
    """Adds up the events of the topic: for the page its scheduler's, for Prometheus its process's, as Dask does."""

    idempotent = True

    def __init__(self) -> None:
        self.recent = Recent()

    async def start(self, scheduler: Scheduler) -> None:
        """Make the metrics, so that they are there before the first event, and the page where there is a dashboard."""
        if _can_serve():
            _instruments()
        if (
            "distributed.dashboard.scheduler" in sys.modules
        ):  # what a scheduler without dashboard does not import
            from hepdask.monitoring import dashboard_page

            dashboard_page.add_page(scheduler, self.recent)

    def log_event(self, topic: str, msg: Any) -> None:
        """Take one message."""
        if topic != TOPIC:
            return
        self.recent.take(msg)
        if not _can_serve():
            return
        for name, amount, labels in msg:
            instrument = _instruments()[name].labels(**labels)
            if METRICS[name].kind == "counter":
                instrument.inc(amount)
            else:
                instrument.set(amount)


def _can_serve() -> bool:
    return importlib.util.find_spec("prometheus_client") is not None


@functools.cache
def _instruments() -> dict[str, Any]:
    import prometheus_client

    kinds = {"counter": prometheus_client.Counter, "gauge": prometheus_client.Gauge}
    return {name: kinds[metric.kind](name, metric.meaning, metric.labels) for name, metric in METRICS.items()}

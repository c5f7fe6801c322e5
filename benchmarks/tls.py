"""What it costs that nobody else comes in: a local cluster with TLS beside one without.

    python benchmarks/tls.py --json OUT [--quick]

Start-up is the time until a cluster of two workers has run its first task. Throughput is that of one array, sent from
here to a worker and fetched back, in clusters that both stay up and take turns.
"""

from __future__ import annotations

import logging
from contextlib import ExitStack
from functools import partial
from typing import Any

import measure
import numpy as np
from distributed import Client
from numpy.typing import NDArray

from hepdask import clusters

KINDS = {"tls": True, "open": False}


def settings(tls: bool, workers: int) -> dict[str, Any]:
    """Give those of a local cluster."""
    return {"kind": "local", "workers": workers, "dashboard_port": 0, "tls": tls}


def start(tls: bool) -> None:
    """Start a cluster, use it once, and end it."""
    with clusters.connect(settings(tls, 2)) as client:
        client.submit(abs, -1).result(60)


def send(client: Client, array: NDArray[np.uint8]) -> None:
    """Send an array to the worker, and wait until it is there."""
    client.scatter(array, hash=False, direct=False).release()


def fetch(client: Client, array: Any) -> None:
    """Fetch what lies on the worker, by way of the scheduler, as results do."""
    client.gather(array, direct=False)


def main() -> None:
    """Measure, print a table, and write the rows."""
    arguments = measure.parser(__doc__).parse_args()
    runs = 3 if arguments.quick else 9
    megabytes = 20 if arguments.quick else 200
    logging.getLogger("hepdask").setLevel(logging.WARNING)
    found = measure.interleave(
        {name: measure.Task(partial(start, tls), clock="wall") for name, tls in KINDS.items()}, runs
    )
    rows = [
        measure.Row.of_costs(
            "start of a local cluster of two workers, wall",
            "s",
            found["tls"],
            found["open"],
            "without TLS",
            runs,
        )
    ]
    payload = np.random.default_rng(1).integers(0, 256, megabytes * 1_000_000, dtype=np.uint8)
    with ExitStack() as stack:
        clients = {
            name: stack.enter_context(clusters.connect(settings(tls, 1))) for name, tls in KINDS.items()
        }
        there = {name: client.scatter(payload, hash=False) for name, client in clients.items()}
        sent = {
            name: measure.Task(partial(send, client, payload), megabytes, "wall")
            for name, client in clients.items()
        }
        fetched = {
            name: measure.Task(partial(fetch, client, there[name]), megabytes, "wall")
            for name, client in clients.items()
        }
        for what, tasks in (("scatter", sent), ("gather", fetched)):
            seconds = measure.interleave(tasks, runs)
            rows.append(
                measure.Row.of_rates(
                    f"{what} of {megabytes} MB, wall", "MB/s", 1 / seconds["tls"], 1 / seconds["open"],
                    "without TLS", runs,
                )
            )  # fmt: skip
    print(measure.table(rows))
    if arguments.json:
        measure.write(arguments.json, rows, measure.machine())


if __name__ == "__main__":
    main()

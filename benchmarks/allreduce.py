"""Latency and bandwidth of the ring of ranks that a cluster gives: Horovod's, and TensorFlow's own beside it.

Beside Horovod's ring also what `collective.allreduce` does with numpy arrays, which is another thing where all ranks
are on one host. All run on the same slots, in turns of one whole run each. A bandwidth is that of the algorithm: the
bytes of the tensor over the time of one allreduce. Times are on the wall and of the slowest rank.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import measure
import numpy as np
from distributed import Client, LocalCluster
from measure import Row

from hepdask.distributed import RankOptions, run
from hepdask.distributed.options import Backend


@dataclass(frozen=True)
class Size:
    """How much is measured: lengths of the tensors, allreduces of each in a run, runs of each backend."""

    numbers: tuple[int, ...]
    repeats: int
    turns: int


FULL = Size((1, 12_000, 1_000_000, 16_000_000), 100, 3)
QUICK = Size((1, 12_000, 1_000_000), 20, 1)
OURS, PEER, ARRAYS = "horovod", "tf.distribute", "arrays"


def main() -> None:
    arguments = measure.parser(__doc__)
    arguments.add_argument("--ranks", type=int, default=2)
    arguments.add_argument("--scheduler", metavar="ADDRESS", help="where to run (default: this machine)")
    arguments.add_argument(
        "--interface", help="network interface of the ring (default: that of Dask's addresses)"
    )
    options = arguments.parse_args()
    size = QUICK if options.quick else FULL
    numbers, repeats = size.numbers, size.repeats
    taken: dict[str, dict[int, list[float]]] = {
        name: {n: [] for n in numbers} for name in (OURS, PEER, ARRAYS)
    }
    with _client(options) as client:
        for _ in range(size.turns):
            for name, function in ((OURS, horovod_ring), (PEER, tensorflow_ring), (ARRAYS, sums_of_arrays)):
                backend: Backend = "tf.distribute" if name == PEER else "horovod"
                ranks = run(
                    function,
                    numbers,
                    repeats,
                    client=client,
                    ranks=options.ranks,
                    options=RankOptions(
                        backend=backend,
                        interface=options.interface,
                        env={"TF_CPP_MIN_LOG_LEVEL": "3"},
                        timeout=600,
                    ),
                )
                for n in numbers:
                    taken[name][n].append(max(one[n] for one in ranks))
    rows = []
    for n in numbers:
        ours, peer = (statistics.median(taken[backend][n]) for backend in (OURS, PEER))
        name = f"allreduce of {n:,} float32, {options.ranks} ranks, wall"
        rows.append(Row.of_costs(name, "ms", 1e3 * ours, 1e3 * peer, PEER, size.turns))
        if n > 1000:
            rates = (4e-6 * n / ours, 4e-6 * n / peer)
            rows.append(Row.of_rates(f"{name}, bandwidth", "MB/s", *rates, PEER, size.turns))
    for n in numbers:
        ours, peer = (statistics.median(taken[name][n]) for name in (ARRAYS, OURS))
        name = f"sum of an array of {n:,} float32, {options.ranks} ranks, wall"
        rows.append(Row.of_costs(name, "ms", 1e3 * ours, 1e3 * peer, "Horovod's ring", size.turns))
    print(measure.table(rows))
    if options.json:
        about = measure.machine(
            quick=options.quick, ranks=options.ranks, scheduler=options.scheduler or "local"
        )
        measure.write(options.json, rows, about)


@contextlib.contextmanager
def _client(options: argparse.Namespace) -> Iterator[Client]:
    if options.scheduler:
        with Client(options.scheduler) as client:
            yield client
        return
    with (
        LocalCluster(n_workers=options.ranks, threads_per_worker=1, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        yield client


def horovod_ring(numbers: tuple[int, ...], repeats: int) -> dict[int, float]:
    """Return the median seconds of one allreduce by its length, on a rank of Horovod."""
    import horovod.tensorflow as hvd

    return timed(
        numbers, repeats, lambda tensor: hvd.allreduce(tensor, op=hvd.Sum, name=f"n{tensor.shape[0]}")
    )


def sums_of_arrays(numbers: tuple[int, ...], repeats: int) -> dict[int, float]:
    """Return the same for numpy arrays, by the shorter way where there is one."""
    from hepdask.distributed import collective

    return timed(
        numbers, repeats, lambda tensor: collective.allreduce(tensor.numpy(), "sum", f"n{tensor.shape[0]}")
    )


def tensorflow_ring(numbers: tuple[int, ...], repeats: int) -> dict[int, float]:
    """Return the same on a worker of MultiWorkerMirroredStrategy."""
    import tensorflow as tf

    options = tf.distribute.experimental.CommunicationOptions(
        implementation=tf.distribute.experimental.CommunicationImplementation.RING
    )
    strategy = tf.distribute.MultiWorkerMirroredStrategy(communication_options=options)

    @tf.function(reduce_retracing=False)
    def reduce(tensor: tf.Tensor) -> tf.Tensor:
        def replica(mine: tf.Tensor) -> tf.Tensor:
            here = tf.identity(mine)  # on this worker's device, which all_reduce wants to know
            return tf.distribute.get_replica_context().all_reduce("sum", here)

        return strategy.run(replica, args=(tensor,))

    return timed(numbers, repeats, reduce)


def timed(numbers: tuple[int, ...], repeats: int, reduce: Callable[[Any], Any]) -> dict[int, float]:
    """Time ``reduce(tensor)`` for tensors of so many float32; all ranks do as many."""
    import tensorflow as tf

    found = {}
    for n in numbers:
        tensor = tf.ones(n)
        for _ in range(3):
            reduce(tensor)
        count = max(3, min(repeats, int(repeats * 1e6 / n)))  # fewer of the large ones
        seconds = []
        for _ in range(count):
            start = time.perf_counter()
            np.asarray(reduce(tensor))
            seconds.append(time.perf_counter() - start)
        found[n] = statistics.median(seconds)
    return found


if __name__ == "__main__":
    main()

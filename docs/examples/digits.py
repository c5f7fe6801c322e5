"""Handwritten digits on a Dask cluster: a Keras network trained by several Horovod ranks that may die.

    python docs/examples/digits.py --ranks 2                           # on a cluster of its own, on this machine
    python docs/examples/digits.py --ranks 8 --scheduler tcp://...     # on yours, with a folder that all hosts see:
                                   --checkpoint /shared/digits

Kill a rank while it runs (`kill -9`, of a process `rank_process.py`): training goes on from the last epoch. Kill the
whole program and start it again: the same.
"""

from __future__ import annotations

import argparse
import contextlib
import tempfile
import time
from pathlib import Path

import numpy as np
from dask.distributed import Client, LocalCluster
from sklearn.datasets import load_digits

from hepdask.distributed import Checkpoint, RankFailed, RankOptions, run

BATCH = 64  # images a step, over all ranks


def images() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return training images (n, 8, 8, 1) and digits (n,), then those for the test."""
    pixels, digits = load_digits(return_X_y=True)
    pixels = pixels.reshape(-1, 8, 8, 1).astype("float32") / 16
    order = np.random.default_rng(0).permutation(len(pixels))
    test, training = order[:360], order[360:]
    return pixels[training], digits[training], pixels[test], digits[test]


def train(epochs: int, checkpoint: Checkpoint) -> dict:
    """Run on every rank. Horovod is up when this is called; imports that are slow belong in here."""
    import keras
    import tensorflow as tf

    from hepdask.distributed import collective
    from hepdask.distributed.keras import DistributedOptimizer, Synchronise, get_values, set_values

    rank, size = collective.rank(), collective.size()
    x, y, test_x, test_y = images()

    keras.utils.set_random_seed(1)
    model = keras.Sequential(
        [
            keras.layers.Input((8, 8, 1)),
            keras.layers.Conv2D(16, 3, activation="relu"),
            keras.layers.Conv2D(32, 3, activation="relu"),
            keras.layers.Flatten(),
            keras.layers.Dense(10),
        ]
    )
    # The one line that makes it parallel. XLA cannot compile what Horovod does, hence jit_compile=False.
    optimizer = DistributedOptimizer(keras.optimizers.Adam(3e-3))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss, metrics=["accuracy"], jit_compile=False)
    optimizer.build(model.trainable_variables)
    state = [*model.weights, *optimizer.variables]

    # After a failure, go on where the last checkpoint was written, by however many ranks.
    history: list[dict[str, float]] = []
    saved = checkpoint.load()
    if saved is not None:
        set_values(state, saved.shared["state"])
        history = saved.shared["history"]

    def shares(epoch: int) -> tf.data.Dataset:
        """Return this rank's part of each global batch. The order depends on the epoch alone, not on the ranks.

        Every rank must take as many steps as the others: the last, incomplete batch is left out.
        """
        steps = len(x) // BATCH
        order = np.random.default_rng((2, epoch)).permutation(len(x))[: steps * BATCH].reshape(steps, BATCH)
        each = BATCH // size
        mine = order[:, rank * each : (rank + 1) * each].ravel()
        return tf.data.Dataset.from_tensor_slices((x[mine], y[mine])).batch(each)

    for epoch in range(len(history), epochs):
        # Synchronise gives all ranks the same start, averages the metrics, and stops the run if ranks differ.
        fit = model.fit(shares(epoch), shuffle=False, verbose=0, callbacks=[Synchronise()])
        history.append({"epoch": epoch + 1, **{name: values[-1] for name, values in fit.history.items()}})
        checkpoint.save({"state": get_values(state), "history": history})
        if rank == 0:
            row = history[-1]
            print(f"epoch {row['epoch']}: loss {row['loss']:.3f}, accuracy {row['accuracy']:.3f}", flush=True)

    # Each rank tests its share; what any rank returns comes back to the driver.
    right = np.argmax(model.predict(test_x[rank::size], verbose=0), axis=1) == test_y[rank::size]
    return {"history": history, "right": int(right.sum()), "tested": len(right)}


@contextlib.contextmanager
def connected(scheduler: str | None, ranks: int):
    """Give a client of the scheduler, or of a cluster that lives as long as the block."""
    if scheduler is not None:
        with Client(scheduler) as client:
            yield client
        return
    with (
        LocalCluster(n_workers=ranks, threads_per_worker=1, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        yield client


def main() -> None:
    """Train, and say how many of the test's digits are read correctly."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    arguments.add_argument("--ranks", type=int, default=2)
    arguments.add_argument("--epochs", type=int, default=8)
    arguments.add_argument("--scheduler", help="address of a Dask scheduler")
    arguments.add_argument("--checkpoint", type=Path, help="folder that driver and workers share")
    options = arguments.parse_args()
    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, connected(options.scheduler, options.ranks) as client:
        try:
            results = run(
                train,
                options.epochs,
                client=client,
                ranks=options.ranks,
                options=RankOptions(
                    checkpoint=options.checkpoint or folder,
                    restarts=3,  # at most so many failures ...
                    min_ranks=1,  # ... and fewer ranks rather than none
                    timeout=600,
                    env={"TF_CPP_MIN_LOG_LEVEL": "3"},
                ),
            )
        except RankFailed as failure:
            raise SystemExit(f"given up: {failure}") from None
    right, tested = (sum(result[name] for result in results) for name in ("right", "tested"))
    print(f"{right} of {tested} digits read correctly by {len(results)} rank(s)", end=", ")
    print(f"{time.monotonic() - begin:.0f} s")


if __name__ == "__main__":
    main()

"""How fast networks train: against Keras' own `fit`, with one rank and two, and what a step is made of.

Ours is what `hepdask train` runs in a rank, on a store. The peers get the same events as arrays that are ready
before the clock starts. After each epoch of ours the peer takes its turn; the first round of both, in which
TensorFlow compiles, does not count.
"""

from __future__ import annotations

import ctypes
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import measure
import numpy as np
from measure import Row
from stores import MOST, lengths, make_store

from hepdask import models
from hepdask.batches import Batches, Reading, padded
from hepdask.config import Config
from hepdask.recurrent import Stored, build, expand
from hepdask.store import Store
from hepdask.training import Snapshot, train_rank

RATE = "events/CPU s"
BATCH = 128
#: Floating-point operations a particle of GRU(50) on 19 features, forward and backward, without the input's gradient.
OPERATIONS = 2 * 150 * (2 * (19 + 50) + 50)


@dataclass(frozen=True)
class Size:
    """How much work a run does.

    Attributes
    ----------
    particles : int
        Of the events of an epoch of ours.
    peer : int
        Events of a turn of padded Keras.
    rows, peer_rows : int
        Events of an epoch of the dense network, and of its peers.
    runs : int
        Timed turns.
    """

    particles: int
    peer: int
    rows: int
    peer_rows: int
    runs: int


FULL = Size(600_000, 2 * BATCH, 400_000, 20_000, 5)
QUICK = Size(150_000, BATCH, 100_000, 5_000, 2)


def main() -> None:
    options = measure.parser(__doc__).parse_args()
    size = QUICK if options.quick else FULL
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        rows = []
        for row in _all(Path(folder), size):
            _say(f"  {row.name}: {row.ratio:.3g} times {row.peer_name}")
            rows.append(row)
    packages = (*measure.PACKAGES, "keras", "tensorflow-cpu", "horovod")
    about = measure.machine(packages, quick=options.quick, kernel=" ".join(build.target()))
    print(
        f"\n{about['cpu']}, {about['cores']} cores, load {about['load']}; {time.perf_counter() - start:.0f} s in all\n"
    )
    print(measure.table(rows))
    if options.json:
        measure.write(options.json, rows, about)


def _all(folder: Path, size: Size) -> Iterator[Row]:
    ours: dict[tuple[str, int], float] = {}
    for cell, mean in (("gru", 200), ("gru", 90), ("gru", MOST), ("lstm", 200)):
        _say(f"inclusive, {cell}, {mean} particles an event")
        store = _store(folder, mean, size)
        config = _config("inclusive", size.runs, cell=cell)
        peer, count = _padded_fit(store, config, size.peer)
        ours[cell, mean], theirs = _in_turns("inclusive", config, store, peer, count)
        kind = "" if cell == "gru" else f" ({cell.upper()})"
        length = f"{mean} rows all real" if mean == MOST else f"mean length {mean}"
        name, what = f"inclusive{kind}, {length}", "padded, masked Keras fit"
        yield Row.of_rates(name, RATE, 1 / ours[cell, mean], 1 / theirs, what, size.runs)
    yield from _dense(folder, size)
    # parts as large as `prepare` makes them
    large = make_store(folder / "large", lengths(6000, 200, 2), parts=3)
    yield _reading(large, ours["gru", 200], size)
    yield _peak(_store(folder, 200, size), ours["gru", 200], size)
    yield from _growth(folder, ours, size)
    yield _two_ranks(folder, size)


def _store(folder: Path, mean: int, size: Size, factor: float = 1.0) -> Store:
    path = folder / f"{mean}-{factor}"
    if path.exists():
        from hepdask import open_store

        return open_store(path)
    count = int(factor * size.particles / mean) // BATCH * BATCH
    return make_store(path, np.maximum(1, lengths(count, mean, 1)))


def _config(model: str, runs: int, **settings: Any) -> Config:
    return Config.model_validate({"models": {model: {"epochs": runs + 1, "batch_size": BATCH, **settings}}})


def _in_turns(
    model: str, config: Config, store: Store, peer: Callable[[], object] | None, count: int
) -> tuple[float, float]:
    """Median CPU seconds an event of ours, and of a peer that sees `count` events in its turn."""
    ours: list[float] = []
    theirs: list[float] = []
    mark = time.process_time()

    def after_epoch(_: Snapshot) -> None:
        nonlocal mark
        ours.append(time.process_time() - mark)
        if peer:
            mark = time.process_time()
            peer()
            theirs.append(time.process_time() - mark)
        mark = time.process_time()

    train_rank(model, config, store.path, after_epoch=after_epoch)
    peers = statistics.median(theirs[1:]) / count if peer else 0.0
    return statistics.median(ours[1:]) / len(store.labels("fit")), peers


def _padded_fit(store: Store, config: Config, count: int) -> tuple[Callable[[], object], int]:
    """Train the same network as anyone would: sequences of 801 rows, a Masking layer, `fit`."""
    inputs = models.inputs("inclusive", config.models, store.features["hlf"])
    model = models.build("inclusive", config.models, inputs, len(store.classes))
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    events = next(_batches(store, batch_size=count).shuffled(1, 0))
    sequences = np.zeros((len(events.events), MOST, 19), np.float32)
    rows = padded(events, store.particle_scaler, list(range(19)), MOST)
    sequences[:, : rows.shape[1]] = rows
    arrays = {"particles": sequences, "high_level": events.high_level}
    return lambda: model.fit(arrays, events.label, batch_size=BATCH, verbose=0), len(sequences)


def _batches(store: Store, memory: float = 2**40, batch_size: int = BATCH) -> Batches:
    return Batches(Reading(store, "fit", memory), store.high_level_scaler, list(range(14)), batch_size)


def _dense(folder: Path, size: Size) -> list[Row]:
    """Time the dense network against both ways to give Keras its rows."""
    import tensorflow as tf

    _say("HLF")
    store = make_store(folder / "hlf", np.ones(size.rows, np.int64))
    config = _config("hlf", size.runs)
    events = store.events("fit")
    x, y = store.high_level_scaler(events.high_level)[: size.peer_rows], events.label[: size.peer_rows]

    def fit(*arguments: Any, **more: Any) -> Callable[[], object]:
        inputs = models.inputs("hlf", config.models, store.features["hlf"])
        model = models.build("hlf", config.models, inputs, 3)
        model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
        return lambda: model.fit(*arguments, verbose=0, **more)

    stream = tf.data.Dataset.from_tensor_slices(({"high_level": x}, y)).shuffle(size.peer_rows)
    peers = {
        "Keras fit on tf.data": fit(stream.batch(BATCH).prefetch(tf.data.AUTOTUNE)),
        "Keras fit on arrays": fit({"high_level": x}, y, batch_size=BATCH),
    }
    rows = []
    for name, peer in peers.items():
        ours, theirs = _in_turns("hlf", config, store, peer, size.peer_rows)
        rows.append(Row.of_rates("HLF, batch 128", RATE, 1 / ours, 1 / theirs, name, size.runs))
    return rows


def _two_ranks(folder: Path, size: Size) -> Row:
    """Time whole epochs on the wall, with one rank and with two, in turns."""
    from distributed import Client, LocalCluster

    from hepdask.distributed import run

    _say("two ranks")
    store = _store(folder, 200, size)
    config = _config("inclusive", 3)
    rates: dict[int, list[float]] = {1: [], 2: []}
    with (
        LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address="127.0.0.1:0", host="127.0.0.1"
        ) as cluster,
        Client(cluster) as client,
    ):
        for _ in range(2):
            for ranks, found in rates.items():
                trained = run(
                    train_rank, "inclusive", config, store.path, client=client, ranks=ranks,
                    env={"TF_CPP_MIN_LOG_LEVEL": "3"}, on_output=lambda rank, line: None,
                )[0]  # fmt: skip
                found += [row["events_per_second"] for row in trained.history[1:]]
    one, two = (statistics.median(found) for found in rates.values())
    return Row.of_rates("inclusive, two ranks (wall)", "events/s", two, one, "one rank", len(rates[1]))


def _reading(store: Store, training: float, size: Size) -> Row:
    """Read, shuffle, expand and scale a store that does not stay in memory."""
    _say("store to batch")
    everything = Reading(store, "fit", 2**40)
    batches = _batches(store, memory=1.9 * everything.bytes)
    assert not batches.reading.fits
    assert store.particle_scaler is not None

    def once() -> None:
        seen = None
        for batch in batches.shuffled(1, 0):
            if batch.source is not seen:
                seen = batch.source
                expand(Stored(seen.particles, store.particle_scaler, range(19)))

    taken = measure.interleave({"reading": measure.Task(once, len(everything))}, size.runs)["reading"]
    return Row.of_rates(
        "store to batch, streamed", RATE, 1 / taken, 1 / training, "what training consumes", size.runs
    )


def _peak(store: Store, training: float, size: Size) -> Row:
    _say("peak of the processor")
    compiler = build.compiler()
    assert compiler is not None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "peak.so"
        source = Path(__file__).with_name("peak.cpp")
        command = [
            compiler,
            "-O3",
            "-shared",
            "-fPIC",
            "-ffp-contract=fast",
            *build.target(),
            str(source),
            "-o",
            str(path),
        ]
        subprocess.run(
            [*command, "-mprefer-vector-width=512"] if "v4" in str(build.target()) else command, check=True
        )
        function = ctypes.CDLL(str(path)).operations_a_second
        function.restype, function.argtypes = (
            ctypes.c_double,
            [ctypes.c_long, ctypes.c_float, ctypes.c_void_p],
        )
        result = ctypes.c_float()
        peak = statistics.median(function(5_000_000, 0.999, ctypes.byref(result)) for _ in range(size.runs))
    particles = float(np.diff(store.events("fit").offsets).mean())
    ours = OPERATIONS * particles / training
    return Row.of_rates(
        "inclusive, mean length 200, whole step",
        "GFLOP/CPU s",
        ours / 1e9,
        peak / 1e9,
        "peak of one core",
        size.runs,
    )


def _growth(folder: Path, ours: dict[tuple[str, int], float], size: Size) -> list[Row]:
    """Time of an event against its length and the number of events; the peer is the first, scaled linearly."""
    rows = []
    for mean in (200, MOST):
        linear = ours["gru", 90] * _mean(folder, mean, size) / _mean(folder, 90, size)
        rows.append(
            Row.of_costs(
                f"time of an event, mean length {mean}", "CPU us", 1e6 * ours["gru", mean], 1e6 * linear,
                "ours at 90, scaled linearly", size.runs,
            )
        )  # fmt: skip
    _say("four times as many events")
    many, _ = _in_turns("inclusive", _config("inclusive", 2), _store(folder, 90, size, 4.0), None, 0)
    name, peer = "time of an event, four times as many of them", "ours at a quarter of them"
    return [*rows, Row.of_costs(name, "CPU us", 1e6 * many, 1e6 * ours["gru", 90], peer, 2)]


def _mean(folder: Path, mean: int, size: Size) -> float:
    return float(np.diff(_store(folder, mean, size).events("fit").offsets).mean())


def _say(what: str) -> None:
    print(what, flush=True)


if __name__ == "__main__":
    main()

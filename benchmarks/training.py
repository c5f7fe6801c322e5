"""How fast networks train: against Keras' own `fit`, with one rank and two, and what a step is made of.

Ours is what `hepdask train` runs in a rank, on a store. The peers get the same events as arrays that are ready
before the clock starts. After each epoch of ours the peer takes its turn; the first round of both, in which
TensorFlow compiles, does not count.
"""

from __future__ import annotations

import ctypes
import functools
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

from hepdask import models, open_store
from hepdask.batches.batch import Batches
from hepdask.batches.padding import padded
from hepdask.batches.reading import Reading
from hepdask.config import Config
from hepdask.distributed import Checkpoint
from hepdask.kernels import build
from hepdask.kernels.recurrent import Stored, expand
from hepdask.store import Store
from hepdask.training.loop import environment, train_rank

RATE = "events/CPU s"
BATCH = 128
#: Floating-point operations, forward and backward, without the input's gradient: a particle of GRU(50) on 19 features,
#: and an event of the dense network.
GRU = 2 * 150 * (2 * (19 + 50) + 50)
HLF = sum(2 * (2 * (k + 1) + (k if k != 14 else 0)) * n for k, n in ((14, 50), (50, 20), (20, 10), (10, 3)))


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


FULL = Size(600_000, 2 * BATCH, 1_000_000, 20_000, 5)
QUICK = Size(150_000, BATCH, 400_000, 5_000, 2)


def main() -> None:
    parser = measure.parser(__doc__)
    parser.add_argument("--only", choices=GROUPS, action="append", help="time this alone; may be repeated")
    options = parser.parse_args()
    size = QUICK if options.quick else FULL
    start = time.perf_counter()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        measured = Measured(Path(folder), size)
        for name in options.only or GROUPS:
            for row in GROUPS[name](measured):
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


class Measured:
    """What several rows need, measured once.

    Parameters
    ----------
    folder : Path
        For stores.
    size : Size
        How much work a run does.
    """

    def __init__(self, folder: Path, size: Size) -> None:
        self.folder, self.size = folder, size

    @functools.cache  # noqa: B019 (lives as long as the program)
    def inclusive(self, cell: str, mean: int) -> tuple[float, float]:
        """CPU seconds an event of ours and of padded Keras."""
        _say(f"inclusive, {cell}, {mean} particles an event")
        store = _store(self.folder, mean, self.size)
        config = _config("inclusive", self.size.runs, cell=cell)
        peer, count = _padded_fit(store, config, self.size.peer)
        return _in_turns("inclusive", config, store, peer, count)

    @functools.cache  # noqa: B019
    def dense(self, peer: str) -> tuple[float, float]:
        """CPU seconds an event of ours and of Keras, which gets its rows in one of two ways."""
        _say(f"HLF, {peer}")
        path = self.folder / "hlf"
        store = open_store(path) if path.exists() else make_store(path, np.ones(self.size.rows, np.int64))
        config = _config("hlf", self.size.runs)
        return _in_turns(
            "hlf", config, store, _dense_fit(store, config, peer, self.size), self.size.peer_rows
        )

    @functools.cached_property
    def peak(self) -> float:
        """Operations a second of one core, in registers."""
        _say("peak of the processor")
        return _peak(self.size.runs)

    def particles(self, mean: int) -> float:
        """Mean number of particles of an event of a store."""
        return float(np.diff(_store(self.folder, mean, self.size).events("fit").offsets).mean())


def _inclusive(measured: Measured) -> Iterator[Row]:
    for cell, mean in (("gru", 200), ("gru", 90), ("gru", MOST), ("lstm", 200)):
        ours, theirs = measured.inclusive(cell, mean)
        kind = "" if cell == "gru" else f" ({cell.upper()})"
        length = f"{mean} rows all real" if mean == MOST else f"mean length {mean}"
        name, what = f"inclusive{kind}, {length}", "padded, masked Keras fit"
        yield Row.of_rates(name, RATE, 1 / ours, 1 / theirs, what, measured.size.runs)


def _dense(measured: Measured) -> Iterator[Row]:
    for peer in ("tf.data", "arrays"):
        ours, theirs = measured.dense(peer)
        what = f"Keras fit on {peer}"
        yield Row.of_rates("HLF, batch 128", RATE, 1 / ours, 1 / theirs, what, measured.size.runs)


def _of_peak(measured: Measured) -> Iterator[Row]:
    """Compare the arithmetic of whole steps with what the processor can do."""
    whole = {
        "inclusive, mean length 200": GRU * measured.particles(200) / measured.inclusive("gru", 200)[0],
        "HLF": HLF / measured.dense("arrays")[0],
    }
    for name, rate in whole.items():
        unit, what = "GFLOP/CPU s", "peak of one core"
        yield Row.of_rates(
            f"{name}, whole step", unit, rate / 1e9, measured.peak / 1e9, what, measured.size.runs
        )


def _store(folder: Path, mean: int, size: Size, factor: float = 1.0) -> Store:
    path = folder / f"{mean}-{factor}"
    if path.exists():
        return open_store(path)
    count = int(factor * size.particles / mean) // BATCH * BATCH
    return make_store(path, np.maximum(1, lengths(count, mean, 1)))


def _config(model: str, runs: int, **settings: Any) -> Config:
    return Config.model_validate({"models": {model: {"epochs": runs + 1, "batch_size": BATCH} | settings}})


def _in_turns(
    model: str, config: Config, store: Store, peer: Callable[[], object] | None, count: int
) -> tuple[float, float]:
    """Median CPU seconds an event of ours, and of a peer that sees `count` events in its turn."""
    ours: list[float] = []
    theirs: list[float] = []
    mark = time.process_time()

    class Turns(Checkpoint):
        """Told of the end of each epoch; keeps nothing."""

        def load(self) -> None:
            return None

        def save(self, shared: Any, per_rank: Any = None) -> None:
            nonlocal mark
            ours.append(time.process_time() - mark)
            if peer:
                mark = time.process_time()
                peer()
                theirs.append(time.process_time() - mark)
            mark = time.process_time()

    train_rank(model, config, store.path, checkpoint=Turns(store.path))
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


def _dense_fit(store: Store, config: Config, way: str, size: Size) -> Callable[[], object]:
    """Train the dense network as anyone would, on a stream or on arrays."""
    import tensorflow as tf

    some = np.random.default_rng(1).permutation(size.rows)[: size.peer_rows]
    events = store.events("fit")
    x, y = {"high_level": store.high_level_scaler(events.high_level)[some]}, events.label[some]
    inputs = models.inputs("hlf", config.models, store.features["hlf"])
    model = models.build("hlf", config.models, inputs, 3)
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    if way == "arrays":
        return lambda: model.fit(x, y, batch_size=BATCH, verbose=0)
    stream = tf.data.Dataset.from_tensor_slices((x, y)).shuffle(size.peer_rows)
    stream = stream.batch(BATCH).prefetch(tf.data.AUTOTUNE)
    return lambda: model.fit(stream, verbose=0)


def _two_ranks(measured: Measured) -> Iterator[Row]:
    """Time whole epochs on the wall, with one rank and with two, in turns."""
    from distributed import Client, LocalCluster

    from hepdask.distributed import RankOptions, run

    _say("two ranks")
    store = _store(measured.folder, 200, measured.size, 3.0)
    set_ups = {"one": (1, BATCH), "shared": (2, BATCH), "each": (2, 2 * BATCH)}
    rates: dict[str, list[float]] = {name: [] for name in set_ups}
    with (
        LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address="127.0.0.1:0", host="127.0.0.1"
        ) as cluster,
        Client(cluster) as client,
    ):
        for _ in range(2):
            for name, (ranks, batch) in set_ups.items():
                config = _config("inclusive", 3, batch_size=batch)
                trained = run(
                    train_rank,
                    "inclusive",
                    config,
                    store.path,
                    client=client,
                    ranks=ranks,
                    options=RankOptions(
                        env=environment("inclusive", config), on_output=lambda rank, line: None
                    ),
                )[0]
                rates[name] += [row["events_per_second"] for row in trained.history[1:]]
    one, shared, each = (statistics.median(found) for found in rates.values())
    for name, two in ((f"a batch of {BATCH} for both", shared), (f"{BATCH} events each", each)):
        name = f"inclusive, two ranks, {name} (wall)"
        yield Row.of_rates(name, "events/s", two, one, f"one rank, batch of {BATCH}", len(rates["one"]))


def _reading(measured: Measured) -> Iterator[Row]:
    """Read, shuffle, expand and scale a store that does not stay in memory; its parts are as `prepare` makes them."""
    _say("store to batch")
    store = make_store(measured.folder / "large", lengths(12_000, 200, 2), parts=4)
    everything = Reading(store, "fit", 2**40)
    batches = _batches(store, memory=1.9 * everything.bytes)
    assert not batches.reading.fits
    scaler = store.particle_scaler
    assert scaler is not None

    def once() -> None:
        seen = None
        for batch in batches.shuffled(1, 0):
            if batch.source is not seen:
                seen = batch.source
                expand(Stored(seen.particles, scaler, range(19)))

    runs = measured.size.runs
    taken = measure.interleave({"reading": measure.Task(once, len(everything))}, runs)["reading"]
    training, _ = measured.inclusive("gru", 200)
    what = "what training consumes"
    yield Row.of_rates("store to batch, streamed", RATE, 1 / taken, 1 / training, what, runs)


def _peak(runs: int) -> float:
    compiler = build.compiler()
    assert compiler is not None
    wide = ["-mprefer-vector-width=512"] if "v4" in str(build.target()) else []
    with tempfile.TemporaryDirectory() as folder:
        path, source = Path(folder) / "peak.so", Path(__file__).with_name("peak.cpp")
        flags = ["-O3", "-shared", "-fPIC", "-ffp-contract=fast", *build.target(), *wide]
        subprocess.run([compiler, *flags, str(source), "-o", str(path)], check=True)
        function = ctypes.CDLL(str(path)).operations_per_second
    function.restype, function.argtypes = ctypes.c_double, [ctypes.c_long, ctypes.c_float, ctypes.c_void_p]
    result = ctypes.c_float()
    return statistics.median(function(5_000_000, 0.999, ctypes.byref(result)) for _ in range(runs))


def _growth(measured: Measured) -> Iterator[Row]:
    """Time of an event against its length and the number of events; the peer is the first, scaled linearly."""
    first, _ = measured.inclusive("gru", 90)
    for mean in (200, MOST):
        linear = first * measured.particles(mean) / measured.particles(90)
        ours, _ = measured.inclusive("gru", mean)
        name, peer = f"time per event, mean length {mean}", "ours at 90, scaled linearly"
        yield Row.of_costs(name, "CPU us", 1e6 * ours, 1e6 * linear, peer, measured.size.runs)
    _say("four times as many events")
    store = _store(measured.folder, 90, measured.size, 4.0)
    many, _ = _in_turns("inclusive", _config("inclusive", 2), store, None, 0)
    name, peer = "time per event, four times as many of them", "ours at a quarter of them"
    yield Row.of_costs(name, "CPU us", 1e6 * many, 1e6 * first, peer, 2)


def _say(what: str) -> None:
    print(what, flush=True)


GROUPS: dict[str, Callable[[Measured], Iterator[Row]]] = {
    "inclusive": _inclusive,
    "hlf": _dense,
    "reading": _reading,
    "peak": _of_peak,
    "growth": _growth,
    "ranks": _two_ranks,
}

if __name__ == "__main__":
    main()

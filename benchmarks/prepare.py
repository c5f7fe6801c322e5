"""What preparing costs: reading, features and writing; bytes an event; memory; workers; a million chunks.

Rates are medians of CPU seconds, all sides in turns in one process on the same events. The plain
alternative takes the same features and writes the published layout into Parquet: 801 x 19 particles and 14
features an event, padded, as doubles (snappy).
"""

from __future__ import annotations

import multiprocessing
import shutil
import tempfile
import time
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import deflate
import events as made
import measure
import numpy as np
import psutil
import uproot
from distributed import Client, LocalCluster
from measure import Row, Task
from numpy.typing import NDArray

from hepdask import prepare
from hepdask.analysis.fingerprint import fingerprints
from hepdask.analysis.topology import Extracted, branches, extract
from hepdask.analysis.topology.expand import expand
from hepdask.analysis.topology.reference_sequences import published_sequences
from hepdask.clusters.task_pool import completed
from hepdask.config import Config, Topology
from hepdask.config.feature_names import STORED
from hepdask.input.contents import FileContent, inspect_file
from hepdask.input.input_file import InputFile
from hepdask.input.read_chunk import read
from hepdask.pipeline.prepare_task import prepare_chunks
from hepdask.store.writer import StoreWriter

CANDIDATES = 310
PHYSICS = Topology()
RATE = "events/CPU s"
BYTES = "bytes/event"
PADDED_ROWS = 500  # events of a padded block: 120 MB of doubles
SMALL_PART = 4000  # events; by default a part is made of 256 MB of input, 28,000 of these events


def main() -> None:
    options = measure.parser(__doc__).parse_args()
    quick = options.quick
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows += _stages(folder, 600 if quick else 16_000, 2 if quick else 7)
        rows += _memory(folder, (2, 6) if quick else (24, 72), 300 if quick else 4000)
        rows += _workers(folder, 4 if quick else 12, 300 if quick else 2000, 1 if quick else 3)
    rows += _scheduler(2_000 if quick else 10_000)
    about = measure.machine(quick=quick)
    print(f"\n{about['cpu']}, {about['cores']} cores, load {about['load']}\n")
    print(measure.table(rows))
    if options.json:
        measure.write(options.json, rows, about)


def _stages(folder: Path, count: int, runs: int) -> list[Row]:
    """Read, features and write, one by one and together; and how large the result is."""
    _say(f"stages, {CANDIDATES} candidates an event")
    path, modern, small = (folder / f"{name}.root" for name in ("input", "zstd", "small"))
    small_part = SMALL_PART if count > SMALL_PART else count // 4
    generated = made.make_events(count, CANDIDATES, 3)
    made.write_root(path, generated)
    made.write_root(modern, generated, uproot.ZSTD(5))
    made.write_root(small, generated, cluster=small_part)
    del generated
    config = _config([path], folder / "out")
    content, of_zstd = _content(path, config), _content(modern, config)
    in_small_parts = _content(small, config, small_part)
    blocks, events = _blocks_and_events(content)
    extracted = [extract(some, PHYSICS) for some in events]
    selected = sum(len(some.high_level) for some in extracted)

    def store(codec: str = "lz4", bits: int = 23) -> Callable[[], None]:
        return lambda: _write(folder / f"{codec}{bits}", extracted, codec, bits)

    def whole(content: FileContent) -> None:
        shutil.rmtree(folder / "whole", ignore_errors=True)
        writer = StoreWriter(folder / "whole")
        writer.start({})
        prepare_chunks(content.chunks, config, writer)

    def inflate(one: Callable[[bytes, int], object]) -> None:
        for block, size in blocks:
            one(block, size)

    def padded_whole() -> None:
        some = [extract(read(chunk, branches(PHYSICS)), PHYSICS) for chunk in content.chunks]
        _write_padded(folder / "padded.parquet", some)

    taken = measure.interleave(
        {
            "read": Task(lambda: [read(chunk, branches(PHYSICS)) for chunk in content.chunks], count),
            "features": Task(lambda: [extract(some, PHYSICS) for some in events], count),
            "write": Task(store(), selected),
            "zstd": Task(store("zstd"), selected),
            "rounded": Task(store("lz4", 10), selected),
            "padded": Task(lambda: _write_padded(folder / "padded.parquet", extracted), selected),
            "read zstd": Task(lambda: [read(chunk, branches(PHYSICS)) for chunk in of_zstd.chunks], count),
            "inflate": Task(lambda: inflate(deflate.zlib_decompress), count),
            "python inflate": Task(
                lambda: inflate(lambda block, size: zlib.decompress(block, bufsize=size)), count
            ),
            "whole": Task(lambda: whole(content), count),
            "whole zstd": Task(lambda: whole(of_zstd), count),
            "small parts": Task(lambda: whole(in_small_parts), count),
            "padded whole": Task(padded_whole, count),
        },
        runs,
    )
    rows = [
        Row.of_rates(f"ROOT (zlib) to store, {CANDIDATES} candidates", RATE, 1 / taken["whole"],
                     1 / taken["padded whole"], "our features, padded Parquet", runs),
        Row.of_rates(f"ROOT (zstd) to store, {CANDIDATES} candidates", RATE, 1 / taken["whole zstd"],
                     1 / taken["whole"], "ROOT (zlib)", runs),
        Row.of_rates(f"ROOT (zlib) to store, parts of {in_small_parts.bounds[0][1]:,} events", RATE,
                     1 / taken["small parts"], 1 / taken["whole"], f"one part of {count:,}", runs),
        Row.of_rates("only inflating (libdeflate)", RATE, 1 / taken["inflate"], 1 / taken["python inflate"],
                     "Python's zlib", runs),
        Row.of_rates("of this: write", RATE, 1 / taken["write"], 1 / taken["padded"], "padded Parquet", runs),
        Row.of_rates("of this: read", RATE, 1 / taken["read"], 1 / taken["whole"], "the whole", runs),
        Row.of_rates("read zstd", RATE, 1 / taken["read zstd"], 1 / taken["read"], "zlib", runs),
        Row.of_rates("of this: features", RATE, 1 / taken["features"], 1 / taken["whole"], "the whole", runs),
        Row.of_rates("write with zstd", RATE, 1 / taken["zstd"], 1 / taken["write"], "lz4", runs),
        Row.of_rates("write rounded to 10 bits", RATE, 1 / taken["rounded"], 1 / taken["write"], "lz4, 23 bits", runs),
        Row.of_rates("input read", "MB/CPU s", path.stat().st_size / 1e6 / count / taken["read"],
                     path.stat().st_size / 1e6 / count / taken["whole"], "the whole", runs),
    ]  # fmt: skip
    padded = (folder / "padded.parquet").stat().st_size / selected
    tfrecord = 4.0 * (PHYSICS.max_particles * 19 + 14 + 3)
    for codec, bits in (("lz4", 23), ("zstd", 23), ("lz4", 10), ("zstd", 10)):
        store(codec, bits)()
        size = sum(f.stat().st_size for f in (folder / f"{codec}{bits}").rglob("*") if f.is_file()) / selected
        for peer, name in ((padded, "padded Parquet"), (tfrecord, "TFRecord of floats, computed")):
            rows.append(Row.of_costs(f"size, {codec}, {bits} bits", BYTES, size, peer, name, 1))
    return rows


def _content(path: Path, config: Config, most: int | None = None) -> FileContent:
    """Say what a file holds, perhaps cut into chunks of so many events."""
    file = InputFile("ttbar", 1, str(path), made.TREE)
    reading = config.input.model_copy(update={"chunk_events": most})
    return inspect_file(file, str(path), branches(PHYSICS), {}, reading)


def _blocks_and_events(content: FileContent) -> tuple[list[tuple[bytes, int]], list[Any]]:
    """Read a file; give its zlib blocks with their sizes, and the events."""
    blocks: list[tuple[bytes, int]] = []
    inflate = deflate.zlib_decompress

    def keep(block: bytes, size: int) -> bytearray:
        blocks.append((bytes(block), size))
        return inflate(block, size)

    with mock.patch.object(deflate, "zlib_decompress", keep):
        events = [read(chunk, branches(PHYSICS)) for chunk in content.chunks]
    return blocks, events


def _write(path: Path, extracted: Sequence[Extracted], codec: str, bits: int) -> None:
    shutil.rmtree(path, ignore_errors=True)
    writer = StoreWriter(path, codec, bits)
    writer.start({})
    for i, some in enumerate(extracted):
        entry = np.arange(len(some.high_level))
        arrays = {
            "offsets": some.particles.offsets, "entry": entry, "group": entry, "high_level": some.high_level,
            "fingerprint": fingerprints(
                some.particles.offsets, (some.particles[name] for name in STORED), some.high_level
            ),
            **some.particles.values,
        }  # fmt: skip
        writer.write_part(f"part-{i}", arrays, {})


def _write_padded(path: Path, extracted: Sequence[Extracted]) -> None:
    """Write what the published pipeline's second stage does: doubles, each event standardised and padded."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    width = PHYSICS.max_particles
    schema = pa.schema([("GRU_input", pa.list_(pa.float64())), ("HLF_input", pa.list_(pa.float64()))])
    with pq.ParquetWriter(path, schema, compression="snappy") as file:
        for some in extracted:
            flat, offsets = expand(some.particles.values, np.float64), some.particles.offsets
            for start in range(0, len(some.high_level), PADDED_ROWS):
                stop = min(start + PADDED_ROWS, len(some.high_level))
                rows = slice(offsets[start], offsets[stop])
                mine = offsets[start : stop + 1] - offsets[start]
                padded = published_sequences(np.ascontiguousarray(flat[:, rows]), mine, mine[1:] - 1, width)
                columns = [_lists(padded), _lists(some.high_level[start:stop])]
                file.write_table(pa.table(columns, schema=schema))


def _lists(values: NDArray) -> Any:
    import pyarrow as pa

    flat = values.reshape(len(values), -1).astype(np.float64)
    offsets = np.arange(len(flat) + 1, dtype=np.int32) * flat.shape[1]
    return pa.ListArray.from_arrays(offsets, flat.ravel())


def _memory(folder: Path, numbers: tuple[int, int], count: int) -> list[Row]:
    """Largest memory of the worker and of the driver, for few and for many files."""
    few, many = numbers
    found = {
        number: _peak(_many_files(folder, number, count), folder / f"memory{number}") for number in numbers
    }
    return [
        Row.of_costs(
            f"memory of the {who}, {many} files", "MB", found[many][i], found[few][i], f"{few} files", 1
        )
        for i, who in enumerate(("worker", "driver"))
    ]


def _peak(files: list[Path], out: Path) -> tuple[float, float]:
    """Prepare in a process of its own; give the peak memory [MB] of its worker and its own."""
    _say(f"memory with {len(files)} files")
    context = multiprocessing.get_context("spawn")
    driver = context.Process(target=_prepare_in_process, args=(files, out))
    driver.start()
    peaks = {"worker": 0.0, "driver": 0.0}
    top = psutil.Process(driver.pid)
    while driver.is_alive():
        for process in (top, *_children(top)):
            try:
                who = "driver" if process.pid == top.pid else "worker"
                peaks[who] = max(peaks[who], process.memory_info().rss / 1e6)
            except psutil.Error:
                continue
        time.sleep(0.02)
    if driver.exitcode:
        raise SystemExit("preparing failed")
    return peaks["worker"], peaks["driver"]


def _children(top: psutil.Process) -> list[psutil.Process]:
    try:
        return top.children(recursive=True)
    except psutil.Error:
        return []


def _prepare_in_process(files: list[Path], out: Path) -> None:
    prepare(_config(files, out))


def _workers(folder: Path, number: int, count: int, runs: int) -> list[Row]:
    """Wall time with two workers and with one."""
    files = _many_files(folder, number, count)

    def task(client: Client) -> Task:
        def call() -> None:
            shutil.rmtree(folder / "workers", ignore_errors=True)
            prepare(_config(files, folder / "workers"), client)

        return Task(call, number * count, "wall")

    _say("one worker and two")
    with _cluster(1) as one, _cluster(2) as two, Client(one) as client_of_one, Client(two) as client_of_two:
        taken = measure.interleave({"one": task(client_of_one), "two": task(client_of_two)}, runs)
    return [
        Row.of_rates("two workers (wall)", "events/s", 1 / taken["two"], 1 / taken["one"], "one worker", runs)
    ]


def _scheduler(tasks: int) -> list[Row]:
    """Tasks a second through the window, with 1,000 threads of workers that only wait."""
    _say("the scheduler's limit")
    seconds = 0.5
    with (
        LocalCluster(
            memory_limit=None, n_workers=20, threads_per_worker=50, processes=False, dashboard_address=None
        ) as cluster,
        Client(cluster) as client,
    ):
        start = time.perf_counter()
        for _ in completed(client, _pretend, range(tasks), seconds, name="pretend", worker_timeout=60.0):
            pass
        rate = tasks / (time.perf_counter() - start)
    needed = 1000 / 20.0
    return [
        Row.of_rates("tasks through one scheduler, 1,000 threads (wall)", "tasks/s", rate, needed,
                     "what 1,000 workers need at 20 s a task", 1),
    ]  # fmt: skip


def _pretend(_item: int, seconds: float) -> None:
    time.sleep(seconds)


def _cluster(workers: int) -> LocalCluster:
    return LocalCluster(
        n_workers=workers, threads_per_worker=1, host="127.0.0.1", dashboard_address=None, silence_logs=40
    )


def _many_files(folder: Path, number: int, count: int) -> list[Path]:
    paths = [folder / f"{count}-{i}.root" for i in range(number)]
    for i, path in enumerate(paths):
        if not path.exists():
            made.write_root(path, made.make_events(count, CANDIDATES, 100 + i))
    return paths


def _config(files: list[Path], out: Path) -> Config:
    return Config.model_validate(
        {
            "output": str(out),
            "fileset": {"ttbar": {"files": [str(file) for file in files], "metadata": {"label": "ttbar"}}},
            "cluster": {"kind": "local", "workers": 1, "dashboard_port": 0},
        }
    )


def _say(what: str) -> None:
    print(what, flush=True)


if __name__ == "__main__":
    main()

"""How fast the features are: against per-event Python, vectorised awkward and Spark, and how they scale.

Rates are medians of CPU seconds, all sides in turns in one process on the same events. Ours runs on
chunks as large as `prepare` reads; the slower ones run on the first events of the same sample. Before
anything is timed, all of them must agree.
"""

from __future__ import annotations

import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import awkward as ak
import events as made
import measure
import numpy as np
import uproot
from measure import Row, Task
from numpy.typing import NDArray
from peers import naive, vectorised
from peers.spark import Form, SparkJob, missing

from hepdask.analysis.topology import branches, expand_columns, extract
from hepdask.config import Input, Topology
from hepdask.input.contents import inspect_file
from hepdask.input.input_file import Chunk, InputFile
from hepdask.input.read_chunk import read

Features = tuple[NDArray[np.float64], NDArray[np.float64]]

HIGH_LEVEL = (
    "HT", "MET", "phiMET", "MT", "nJets", "nBjets", "LepPt", "LepEta", "LepPhi",
    "LepIsoCh", "LepIsoGamma", "LepIsoNeu", "LepCharge", "LepIsEle",
)  # fmt: skip
PARTICLE = (
    "Energy", "Px", "Py", "Pz", "Pt", "Eta", "Phi", "vtxX", "vtxY", "vtxZ",
    "ChPFIso", "GammaPFIso", "NeuPFIso", "isChHad", "isNeuHad", "isGamma", "isEle", "isMu", "Charge",
)  # fmt: skip

RATE = "events/CPU s"
USUAL, DENSE = 310, 1500
SCALING = (150, 300, 600, 1200, 2000)
PHYSICS = Topology()


@dataclass(frozen=True)
class Size:
    """How much work a run does.

    Attributes
    ----------
    ours, naive, vectorised : dict
        Candidates an event to the number of events.
    spark, spark_runs : int
        Events of a Spark run, and its repetitions.
    scaling : int
        Candidates in all events of a sample of the scaling rows.
    runs : int
        Repetitions of everything else.
    """

    ours: dict[int, int]
    naive: dict[int, int]
    vectorised: dict[int, int]
    spark: int
    spark_runs: int
    scaling: int
    runs: int


FULL = Size(
    {USUAL: 5000, DENSE: 1500}, {USUAL: 300, DENSE: 100}, {USUAL: 300, DENSE: 60}, 1000, 3, 1_500_000, 7
)
QUICK = Size({USUAL: 1000, DENSE: 300}, {USUAL: 50, DENSE: 15}, {USUAL: 100, DENSE: 20}, 150, 1, 300_000, 2)

# ROOT's default, and what large files are often rewritten with
CODECS = {"zlib": uproot.ZLIB(1), "zstd": uproot.ZSTD(5)}
FORMS: dict[Form, str] = {"python": "per-event Python", "sql": "SQL functions"}

# no size of chunks from 5 to 200 events is faster for vectorised awkward
CHUNK = {USUAL: 100, DENSE: 5}


def main() -> None:
    arguments = measure.parser(__doc__)
    arguments.add_argument(
        "--spark-python", default=sys.executable, metavar="PATH",
        help="Python that has pyspark and numpy (default: this one); Java is needed too",
    )  # fmt: skip
    options = arguments.parse_args()
    size = QUICK if options.quick else FULL
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        sample = ak.concatenate((made.make_events(20, USUAL, 1), made.make_events(4, DENSE, 2)))
        wanted = _ours(sample)
        _agree("per-event Python", naive.features(made.plain(sample)), wanted)
        _agree("vectorised awkward", vectorised.features(sample), wanted)
        rows = [*_kernels(USUAL, size), *_kernels(DENSE, size)]
        from_file, spark = _from_file(Path(folder), sample, wanted, options.spark_python, size)
        rows += [*from_file, *_scaling(size)]
    about = measure.machine(spark=spark, quick=options.quick)
    print(
        f"\n{about['cpu']}, {about['cores']} cores, load {about['load']}; {time.perf_counter() - start:.0f} s in all\n"
    )
    print(measure.table(rows))
    if options.json:
        measure.write(options.json, rows, about)


def _kernels(candidates: int, size: Size) -> list[Row]:
    """Features of events in memory."""
    _say(f"kernels at {candidates} candidates an event")
    events = made.make_events(size.ours[candidates], candidates, 3)
    few, chunked = events[: size.naive[candidates]], events[: size.vectorised[candidates]]
    taken = measure.interleave(
        {
            "ours": Task(lambda: _compute(events), len(events)),
            "naive": Task(lambda: naive.features(made.plain(few)), len(few)),
            "vectorised": Task(lambda: vectorised.features(chunked, CHUNK[candidates]), len(chunked)),
        },
        size.runs,
    )
    name = f"kernels, {candidates:,} candidates"
    return [
        Row.of_rates(name, RATE, 1 / taken["ours"], 1 / taken[key], peer, size.runs)
        for key, peer in (
            ("naive", "per-event Python (numpy)"),
            ("vectorised", f"vectorised awkward, chunks of {CHUNK[candidates]}"),
        )
    ]


def _from_file(
    folder: Path, sample: ak.Array, wanted: Features, python: str, size: Size
) -> tuple[list[Row], dict[str, Any] | None]:
    """Features of events on disk: ROOT for ours, Parquet for Spark."""
    reason = missing(python)
    if reason is None and not _has_pyarrow():
        reason = "pyarrow, which writes its input, is not installed"
    if reason:
        _say(f"no rows of Spark: {reason}")
        return [], None
    _say(f"from file, {USUAL} candidates an event")
    events = made.make_events(size.ours[USUAL], USUAL, 3)
    some, check, empty = (folder / f"{name}.parquet" for name in ("some", "check", "empty"))
    made.write_parquet(some, events[: size.spark])
    made.write_parquet(check, sample)
    made.write_parquet(empty, sample[:0])
    chunks = {codec: _root_chunk(folder / f"{codec}.root", events, codec) for codec in CODECS}

    def ours(chunk: Chunk) -> Task:
        return Task(lambda: _compute(read(chunk, branches(PHYSICS))), len(events))

    with SparkJob(python) as job:

        def run(form: Form, path: Path) -> Task:
            return Task(lambda: job.run(form, path), families=(job.family,))

        for form, title in FORMS.items():
            _agree(f"Spark, {title}", job.features(form, check), wanted)
        # right after a Spark job the caches are Spark's; a worker reads chunk after chunk, so the first is not counted
        tasks = {"not counted": ours(chunks["zlib"])} | {
            codec: ours(chunk) for codec, chunk in chunks.items()
        }
        for form in FORMS:
            tasks |= {form: run(form, some), f"empty {form}": run(form, empty)}
        taken = measure.interleave(tasks, size.spark_runs)
        about = job.about | {
            "start_up_cpu_s": round(job.start_up, 2),
            "empty_job_cpu_s": {form: round(taken[f"empty {form}"], 2) for form in FORMS},
        }
    print(
        f"Spark: {job.start_up:.1f} CPU s to start; an empty job's {about['empty_job_cpu_s']} are taken off"
    )
    rows = [
        Row.of_rates(
            f"file ({codec}) to features, {USUAL} candidates", RATE, 1 / taken[codec],
            size.spark / (taken[form] - taken[f"empty {form}"]), f"Spark on Parquet, {title}", size.spark_runs,
        )
        for codec in CODECS
        for form, title in FORMS.items()
    ]  # fmt: skip
    return rows, about


def _root_chunk(path: Path, events: ak.Array, codec: str) -> Chunk:
    made.write_root(path, events, CODECS[codec])
    file = InputFile("benchmark", 0, str(path), made.TREE)
    content = inspect_file(file, str(path), branches(PHYSICS), {}, Input(chunk_memory=1 << 20))
    return Chunk(content.file, content.identity, 0, content.entries)


def _scaling(size: Size) -> list[Row]:
    """Time of an event against its number of candidates; the peer is ours at the fewest, scaled linearly."""
    _say("scaling with the number of candidates")

    def task(candidates: int) -> Task:
        events = made.make_events(size.scaling // candidates, candidates, 4)
        return Task(lambda: _compute(events), len(events))

    taken = measure.interleave({str(candidates): task(candidates) for candidates in SCALING}, size.runs)
    least = taken[str(SCALING[0])] / SCALING[0]
    return [
        Row.of_costs(
            f"time per event, {candidates:,} candidates", "CPU us", 1e6 * taken[str(candidates)],
            1e6 * least * candidates, f"ours at {SCALING[0]}, scaled linearly", size.runs,
        )
        for candidates in SCALING
    ]  # fmt: skip


def _compute(events: ak.Array) -> dict[str, NDArray]:
    return expand_columns(extract(events, PHYSICS).particles.values)


def _ours(events: ak.Array) -> Features:
    extracted = extract(events, PHYSICS)
    columns = expand_columns(extracted.particles.values)
    return np.asarray(extracted.high_level), np.stack([columns[name] for name in PARTICLE], axis=1)


def _agree(peer: str, found: Features, wanted: Features) -> None:
    """Stop unless a peer gives our features to 1e-5 (relative, and of a GeV or mm)."""
    for what, names, theirs, ours in (
        ("events", HIGH_LEVEL, found[0], wanted[0]),
        ("particles", PARTICLE, found[1], wanted[1]),
    ):
        if theirs.shape != ours.shape:
            raise SystemExit(f"{peer}: {len(theirs)} {what} selected, hepdask selects {len(ours)}")
        wrong = np.argwhere(~np.isclose(theirs, ours, rtol=1e-5, atol=1e-5))
        if len(wrong):
            i, j = wrong[0]
            raise SystemExit(
                f"{peer}: {names[j]} of entry {i} of the {what} is {theirs[i, j]!r}, hepdask has {ours[i, j]!r}"
                f" ({len(wrong)} values differ)"
            )
    _say(f"agrees: {peer}")


def _has_pyarrow() -> bool:
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError:
        return False
    return True


def _say(what: str) -> None:
    print(what, flush=True)


if __name__ == "__main__":
    main()

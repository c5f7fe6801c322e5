"""`prepare`: ROOT files into a store, over a Dask cluster."""

from __future__ import annotations

import datetime
import json
import logging
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from distributed import Client

from hepdask import clusters, logs
from hepdask.analysis import topology
from hepdask.clusters.task_pool import completed
from hepdask.config import Config
from hepdask.errors import HepdaskError, InputError, StoreError
from hepdask.files.atomic import read_sealed, write_sealed
from hepdask.files.lock import locked
from hepdask.input import read_bytes
from hepdask.input.contents import FileContent
from hepdask.input.fileset import input_files
from hepdask.input.input_file import Chunk
from hepdask.input.lost import Lost
from hepdask.monitoring import metrics
from hepdask.pipeline import prepare_task
from hepdask.pipeline.lost_input import Ledger
from hepdask.pipeline.open_inputs import inputs_known, open_all, refuse_copies
from hepdask.progress import track
from hepdask.store import Store, open_store
from hepdask.store.duplicates import Shared, refuse_shared, shared_events
from hepdask.store.layout import INPUTS, LEDGER, MANIFEST
from hepdask.store.manifest import manifest
from hepdask.store.writer import StoreWriter, refuse_others, refuse_strangers

logger = logging.getLogger(__name__)

_KEYS = {"input": ("chunk_events", "chunk_memory"), "store": ("codec", "mantissa_bits")}
_CHUNKS_OF_A_TASK = 8


@dataclass(frozen=True)
class Prepared:
    """What `prepare` did.

    Attributes
    ----------
    store : Store
        The finished store.
    tasks : int
        Chunks that were processed now; the others were there already.
    wall_s, cpu_s : float
        Time, and CPU time of the workers [s].
    """

    store: Store
    tasks: int
    wall_s: float
    cpu_s: float


def prepare(config: Config, client: Client | None = None, retry_lost: bool = False) -> Prepared:
    """Read, select, compute features, and write the store.

    Repeated or killed at any moment, it goes on where it stopped: parts that are there are complete. Input that an
    earlier, finished run lost stays lost until it is asked for.

    Parameters
    ----------
    config : Config
        Uses `fileset`, `input`, `analysis`, `store`, `split` and `cluster`.
    client : distributed.Client, optional
        Where the tasks run; by default on `config.cluster`.
    retry_lost : bool
        Try again what a finished run has lost.

    Returns
    -------
    Prepared

    Raises
    ------
    InputError
        More input than `store.max_lost_fraction` cannot be used, no event passes the selection, or files share events.
    StoreError
        The store was made with another configuration, or another driver is writing it.
    ClusterError
        The cluster has no workers for too long.
    """
    logs.show()
    begin = time.monotonic()
    path = config.store_path
    files = input_files(config)
    with ExitStack() as stack:
        cluster = _Cluster(config, client, stack)
        refuse_strangers(path)
        stack.enter_context(locked(path, "writing this store", StoreError))
        writer = StoreWriter.of(config)
        writer.start(identity(config))
        before = _manifest_before(path)
        accepted = [] if retry_lost else [Lost(**item) for item in before.get("lost", [])]
        contents, unopened = open_all(files, config, cluster.client, inputs_known(path), accepted)
        refuse_copies(contents)
        write_sealed(path / INPUTS, {"files": [asdict(content) for content in contents if content.stamp]})

        plan = [chunk for content in contents for chunk in content.chunks]
        there = writer.parts()
        _tell_changed(contents, there)
        given_up = {item.key: item for item in accepted if item.version}
        absent = [chunk for chunk in plan if chunk.name not in there]
        missing = [chunk for chunk in absent if Lost.chunk(chunk, "").key not in given_up]
        _explain(plan, there, missing)
        lost = [given_up[key] for chunk in absent if (key := Lost.chunk(chunk, "").key) in given_up]
        ledger = Ledger(config, contents, [*unopened, *lost])
        for chunk in plan:
            if chunk.name in there:
                ledger.add_bad(there[chunk.name])
        ledger.check()
        if missing:
            there |= _process(missing, config, writer, cluster.client_when_compiled(), ledger)
            writer.tidy()
        parts = [there[chunk.name] for chunk in plan if chunk.name in there]
        if not any(part["events"] for part in parts):
            raise InputError(
                f"no event passes the selection: {sum(c.entries for c in contents):,} entries were read from "
                f"{len(files)} files, none has an electron or muon with pT > {config.analysis.lepton_min_pt} GeV and "
                f"isolation < {config.analysis.lepton_max_isolation}; check analysis.* and the files"
            )
        summed = json.loads(json.dumps(manifest(config, parts, files, ledger.lost)))
        if summed["parts"] == before.get("parts"):
            shared = [Shared(**item | {"entries": tuple(item["entries"])}) for item in before["shared"]]
        else:
            shared = shared_events(Store(path, summed))
        summed["shared"] = json.loads(json.dumps([asdict(one) for one in shared]))
        summed["notes"] += refuse_shared(shared)
        cpu = cluster.cpu_seconds()
        if {key: before.get(key) for key in summed} == summed:
            store = open_store(path)
            logger.info(f"{path}: up to date, {len(store):,} events")
            return Prepared(store, len(missing), time.monotonic() - begin, cpu)
        written = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        cost = {"written": written, "wall_s": time.monotonic() - begin, "cpu_s": cpu}
        writer.finish(summed | cost)
        (path / LEDGER).unlink(missing_ok=True)
    store = open_store(path)
    for line in summary(store):
        logger.info(line)
    return Prepared(store, len(missing), time.monotonic() - begin, cpu)


def _manifest_before(path: Path) -> dict[str, Any]:
    """Read the manifest of an earlier run; one that is damaged is told, and made again from the parts."""
    try:
        return read_sealed(path / MANIFEST) or {}
    except HepdaskError:
        logger.warning(
            f"{path / MANIFEST}: damaged; it is made again from the parts, and what was lost is tried again"
        )
        return {}


class _Cluster:
    """The cluster, started when it is first needed: a store that is up to date needs none."""

    def __init__(self, config: Config, client: Client | None, stack: ExitStack) -> None:
        self._config, self._given, self._stack = config, client, stack
        self._client: Client | None = None
        self._compiled: Future[None]
        self._cpu_before = 0.0

    def client(self) -> Client:
        if self._client is None:
            compiler = self._stack.enter_context(ThreadPoolExecutor(1, thread_name_prefix="compile"))
            self._compiled = compiler.submit(topology.warm_up, self._config.analysis)
            self._client = self._stack.enter_context(clusters.connect(self._config.cluster, self._given))
            self._cpu_before = clusters.cpu_seconds(self._client)
        return self._client

    def client_when_compiled(self) -> Client:
        """Give the client once the kernels are compiled, so that not every worker compiles them."""
        client = self.client()
        self._compiled.result()
        return client

    def cpu_seconds(self) -> float:
        """CPU time [s] the workers have used for us."""
        return clusters.cpu_seconds(self._client) - self._cpu_before if self._client else 0.0


def identity(config: Config) -> dict[str, Any]:
    """Name the settings that all parts of a store must share, flat and JSON-ready."""
    split = {"split.seed": config.split.seed, "split.test_fraction": config.split.test_fraction}
    analysis = config.analysis.model_dump(mode="json")
    collections = analysis.pop("collections")
    # as lists, for the order counts; by their source, wherever it lies
    for key in ("selections", "features"):
        functions = getattr(config.analysis, key).items()
        analysis[key] = [f"{name}: {function.identity}" for name, function in functions]
    return {
        **{f"analysis.{key}": value for key, value in analysis.items()},
        **{f"analysis.collections.{key}": value for key, value in collections.items()},
        **split,
        **{
            f"{section}.{key}": getattr(getattr(config, section), key)
            for section, keys in _KEYS.items()
            for key in keys
        },
    }


def open_prepared(config: Config) -> Store:
    """Open the store of a configuration, and make sure that it is what the configuration says.

    Raises
    ------
    StoreError
        There is no complete store, or it was made with other settings or datasets.
    """
    store = open_store(config.store_path)
    refuse_others(config.store_path, identity(config))
    expected = [[name, dataset.metadata["label"]] for name, dataset in config.fileset.items()]
    found = [[row["dataset"], row["label"]] for row in store.manifest["selection"]]
    if (
        (found != expected and not store.imported)
        or store.split != config.split
        or store.classes != list(config.analysis.classes)
    ):
        raise StoreError(
            f"{store.path}: the fileset, the classes or the split have changed since; run: hepdask prepare CONFIG"
        )
    return store


def summary(store: Store) -> list[str]:
    """Say in a line each what was selected, by dataset, and what is missing."""
    lines = []
    for row in store.manifest["selection"]:
        share = row["events_selected"] / row["events_read"] if row["events_read"] else 0.0
        lost = f", {row['events_lost']:,} lost" if row["events_lost"] else ""
        lost += f", {row['files_lost']:,} files lost" if row["files_lost"] else ""
        lines.append(
            f"{row['dataset']} ({row['label']}): {row['events_selected']:,} of {row['events_read']:,} events "
            f"selected ({share:.1%}), {row['files']} files{lost}"
        )
    return lines + store.manifest["notes"]


def _explain(plan: list[Chunk], there: dict[str, dict[str, Any]], missing: list[Chunk]) -> None:
    """Say to those who ask which parts are up to date, and why the others are not."""
    logger.debug("%d of %d parts are up to date", sum(chunk.name in there for chunk in plan), len(plan))
    unused = len(there.keys() - {chunk.name for chunk in plan})
    if unused:
        logger.debug("%d parts are of files that have changed, or are no longer in the fileset", unused)
    made = {(part["dataset"], part["file"], part["tree"]) for part in there.values()}
    for chunk in missing:
        known = (chunk.file.dataset, chunk.file.path, chunk.file.tree) in made
        why = "other parts of this file are there" if known else "nothing of this file was stored yet"
        logger.debug("%s: to be made, %s", chunk, why)


def _tell_changed(contents: list[FileContent], there: dict[str, dict[str, Any]]) -> None:
    """Say which files have changed since parts were made of them: those parts are no longer used."""
    now = {(content.file.dataset, content.file.path, content.file.tree): content for content in contents}
    changed = {
        part["file"]
        for part in there.values()
        if (content := now.get((part["dataset"], part["file"], part["tree"])))
        and part["version"] != content.identity.version
    }
    for path in sorted(changed):
        logger.info(f"{path}: changed since its events were stored; they are read again")


def _process(
    missing: list[Chunk], config: Config, writer: StoreWriter, client: Client, ledger: Ledger
) -> dict[str, dict[str, Any]]:
    """Bring the missing chunks into the store; give the attributes of their parts by name."""
    done: dict[str, dict[str, Any]] = {}
    # some chunks a task, so that one is read while another is worked on, and yet several tasks for each thread
    size = max(1, min(_CHUNKS_OF_A_TASK, len(missing) // (4 * max(1, sum(client.nthreads().values())))))
    tasks_of = [missing[start : start + size] for start in range(0, len(missing), size)]
    metrics.serve(client)
    with track("prepare", sum(chunk.stop - chunk.start for chunk in missing), "events") as tracker:
        tasks = completed(
            client, _prepare_and_count, tasks_of, config, writer,
            name="prepare", worker_timeout=config.store.worker_timeout,
        )  # fmt: skip
        with closing(tasks):
            for chunks, (results, read) in tasks:
                metrics.tell(client, [*_changes(chunks, results), *metrics.bytes_read(read)])
                for chunk, result in zip(chunks, results, strict=True):
                    tracker.advance(chunk.stop - chunk.start)
                    if isinstance(result, Lost):
                        ledger.add(result)
                    else:
                        done[chunk.name] = result
                        ledger.add_bad(result)
                ledger.check()
    return done


def _prepare_and_count(
    chunks: list[Chunk], config: Config, writer: StoreWriter
) -> tuple[list[dict[str, Any] | Lost], dict[str, int]]:
    """Prepare chunks on a worker; give the results, and the bytes read by server."""
    return prepare_task.prepare_chunks(chunks, config, writer), read_bytes.take()


def _changes(
    chunks: list[Chunk], results: list[dict[str, Any] | Lost]
) -> Iterator[tuple[str, float, dict[str, str]]]:
    """Say what became of the events of some chunks, for those who watch."""
    for chunk, result in zip(chunks, results, strict=True):
        size = chunk.stop - chunk.start
        selected = 0 if isinstance(result, Lost) else result["events"]
        lost = size if isinstance(result, Lost) else sum(bad["events"] for bad in result["bad"])
        outcomes = {"lost": lost, "rejected": size - selected - lost}
        for outcome, events in ({"selected": selected} | outcomes).items():
            yield "hepdask_events", events, {"dataset": chunk.file.dataset, "outcome": outcome}

"""`prepare`: ROOT files into a store, over a Dask cluster."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import platform
import time
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import reduce
from typing import Any

from distributed import Client

from hepdask import clusters, preparation
from hepdask.artifacts import read_json
from hepdask.config import Config
from hepdask.errors import InputError, StoreError
from hepdask.fileset import input_files
from hepdask.preparation import Lost
from hepdask.progress import say, track
from hepdask.scaling import Moments
from hepdask.source import Chunk, FileContent, InputFile, chunks
from hepdask.store import Store, open_store, writer
from hepdask.store.layout import MANIFEST, SCHEMA
from hepdask.tasks import completed

_PACKAGES = ("hepdask", "awkward", "numba", "numpy", "uproot", "zarr")


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


def prepare(config: Config, client: Client | None = None) -> Prepared:
    """Read, select, compute features, and write the store.

    Repeated or killed at any moment, it goes on where it stopped: parts that are there are complete.

    Parameters
    ----------
    config : Config
        Uses `fileset`, `physics`, `store`, `split` and `cluster`.
    client : distributed.Client, optional
        Where the tasks run; by default on `config.cluster`.

    Returns
    -------
    Prepared

    Raises
    ------
    InputError
        More input than `store.max_lost_fraction` cannot be read, or no event passes the selection.
    StoreError
        The store was made with another configuration.
    ClusterError
        The cluster has no workers for too long.
    """
    begin = time.monotonic()
    files = input_files(config)
    path = config.store_path
    with clusters.connect(config.cluster, client) as client:
        cpu_before = clusters.cpu_seconds(client)
        contents, unopened = _open_all(files, config, client)
        plan = [chunk for content in contents for chunk in chunks(content, config.store.chunk_events)]
        entries = sum(content.entries for content in contents)
        # a file that cannot be opened is taken to be as long as the others are on average
        total = entries + len(unopened) * (entries / len(contents) if contents else 1.0)
        _refuse_losses(unopened, total - entries, total, config)
        writer.start_store(path, identity(config))
        missing = [chunk for chunk in plan if not writer.has_part(path, chunk.name)]
        lost = unopened + _process(missing, config, client, total, total - entries)
        cpu = clusters.cpu_seconds(client) - cpu_before
    parts = [writer.part_attributes(path, chunk.name) for chunk in plan if writer.has_part(path, chunk.name)]
    if not any(part["events"] for part in parts):
        raise InputError(
            f"no event passes the selection: {entries:,} entries were read from {len(files)} files, none has an "
            f"electron or muon with pT > {config.physics.lepton_min_pt} GeV and isolation < "
            f"{config.physics.lepton_max_isolation}; check physics.* and the files"
        )
    manifest = _manifest(config, parts, contents, lost)
    before = read_json(path / MANIFEST) or {}
    if {key: before.get(key) for key in manifest} == json.loads(json.dumps(manifest)):
        store = open_store(path)
        say(f"{path}: up to date, {len(store):,} events")
        return Prepared(store, len(missing), time.monotonic() - begin, cpu if missing else 0.0)
    written = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    cost = {"written": written, "wall_s": time.monotonic() - begin, "cpu_s": cpu}
    writer.write_manifest(path, manifest | cost)
    store = open_store(path)
    for line in summary(store):
        say(line)
    return Prepared(store, len(missing), time.monotonic() - begin, cpu)


def identity(config: Config) -> dict[str, Any]:
    """Name the settings that all parts of a store must share, flat and JSON-ready."""
    split = {"split.seed": config.split.seed, "split.test_fraction": config.split.test_fraction}
    physics = config.physics.model_dump(mode="json")
    collections = physics.pop("collections")
    return {
        **{f"physics.{key}": value for key, value in physics.items()},
        **{f"physics.collections.{key}": value for key, value in collections.items()},
        **split,
        "store.chunk_events": config.store.chunk_events,
    }


def open_prepared(config: Config) -> Store:
    """Open the store of a configuration, and make sure that it is what the configuration says.

    Raises
    ------
    StoreError
        There is no complete store, or it was made with other settings or datasets.
    """
    store = open_store(config.store_path)
    writer.refuse_others(config.store_path, identity(config))
    expected = [[name, dataset.metadata["label"]] for name, dataset in config.fileset.items()]
    found = [[row["dataset"], row["label"]] for row in store.manifest["selection"]]
    if found != expected or store.split != config.split or store.classes != list(config.physics.classes):
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
        lines.append(
            f"{row['dataset']} ({row['label']}): {row['events_selected']:,} of {row['events_read']:,} events "
            f"selected ({share:.1%}), {row['files']} files{lost}"
        )
    return lines + store.manifest["notes"]


def _open_all(files: list[InputFile], config: Config, client: Client) -> tuple[list[FileContent], list[Lost]]:
    found: list[FileContent] = []
    lost: list[Lost] = []
    with track("open files", len(files), "files") as tracker:
        tasks = completed(
            client,
            preparation.describe,
            files,
            config,
            name="open",
            worker_timeout=config.store.worker_timeout,
        )
        for _, result in tasks:
            (lost if isinstance(result, Lost) else found).append(result)
            tracker.advance(1)
    found.sort(key=lambda content: (content.file.dataset, content.file.path))
    identities: dict[tuple[str, str], FileContent] = {}
    for content in found:
        twin = identities.setdefault((content.uuid, content.file.tree), content)
        if twin is not content:
            raise InputError(
                f"{content.file.path} and {twin.file.path} are copies of one file (UUID {content.uuid}); its events "
                "would count double. Name one of them in the fileset."
            )
    return found, lost


def _process(
    missing: list[Chunk], config: Config, client: Client, total: float, already_lost: float
) -> list[Lost]:
    lost: list[Lost] = []
    with track("prepare", sum(chunk.stop - chunk.start for chunk in missing), "events") as tracker:
        tasks = completed(
            client, preparation.prepare_chunk, missing, config, config.store_path.absolute(),
            name="prepare", worker_timeout=config.store.worker_timeout,
        )  # fmt: skip
        with closing(tasks):
            for chunk, result in tasks:
                tracker.advance(chunk.stop - chunk.start)
                if isinstance(result, Lost):
                    lost.append(result)
                    entries = already_lost + sum(item.stop - item.start for item in lost)
                    _refuse_losses(lost, entries, total, config)
    return lost


def _refuse_losses(lost: list[Lost], entries: float, total: float, config: Config) -> None:
    if not lost or entries <= config.store.max_lost_fraction * total:
        return
    reasons = "\n  ".join(item.reason for item in lost[:5])
    more = f"\n  and {len(lost) - 5} more" if len(lost) > 5 else ""
    raise InputError(
        f"input cannot be read (about {entries / total:.2%} of all entries, store.max_lost_fraction is "
        f"{config.store.max_lost_fraction:.2%}):\n  {reasons}{more}"
    )


def _manifest(
    config: Config, parts: list[dict[str, Any]], contents: list[FileContent], lost: list[Lost]
) -> dict[str, Any]:
    labels = {
        name: config.physics.classes.index(dataset.metadata["label"])
        for name, dataset in config.fileset.items()
    }
    parts = [part | {"label": labels[part["dataset"]]} for part in parts]
    parts = sorted(parts, key=lambda part: (part["dataset"], part["file"], part["start"]))
    selection = []
    for dataset, settings in config.fileset.items():
        mine = [part for part in parts if part["dataset"] == dataset]
        paths = {content.file.path for content in contents if content.file.dataset == dataset}
        selection.append(
            {
                "dataset": dataset,
                "label": settings.metadata["label"],
                "files": len(paths),
                "events_read": sum(part["stop"] - part["start"] for part in mine),
                "events_selected": sum(part["events"] for part in mine),
                "events_lost": sum(item.stop - item.start for item in lost if item.path in paths),
            }
        )
    notes = [
        f"no event of {row['dataset']} ({row['label']}) passes the selection"
        for row in selection
        if not row["events_selected"]
    ] + [f"lost: {item.reason}" for item in lost]
    return {
        "schema": SCHEMA,
        "classes": list(config.physics.classes),
        "high_level_features": list(config.physics.high_level_features),
        "max_particles": config.physics.max_particles,
        "split": config.split.model_dump(mode="json"),
        "physics": config.physics.model_dump(mode="json"),
        "moments": {
            kind: reduce(
                Moments.merge, (Moments.from_json(part["moments"][kind]) for part in parts)
            ).to_json()
            for kind in ("particles", "high_level", "high_level_all")
        },
        "selection": selection,
        "notes": notes,
        "lost": [asdict(item) for item in lost],
        "parts": parts,
        "versions": {
            "python": platform.python_version(),
            **{package: importlib.metadata.version(package) for package in _PACKAGES},
        },
    }

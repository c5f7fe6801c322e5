"""`prepare`: ROOT files into a store, over a Dask cluster."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import platform
import time
from dataclasses import asdict, dataclass
from functools import reduce
from pathlib import Path
from typing import Any

from distributed import Client

from hepdask import clusters, preparation
from hepdask.config import Config
from hepdask.errors import InputError
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
        _refuse_losses(unopened, len(unopened) * (total - entries) / max(len(unopened), 1), total, config)
        writer.start_store(path, identity(config))
        if _is_complete(path, plan, unopened):
            say(f"{path}: up to date, {len(open_store(path)):,} events")
            return Prepared(open_store(path), 0, time.monotonic() - begin, 0.0)

        missing = [chunk for chunk in plan if not writer.has_part(path, chunk.name)]
        lost = unopened + _process(missing, config, client, total)
        cpu = clusters.cpu_seconds(client) - cpu_before
    parts = [writer.part_attributes(path, chunk.name) for chunk in plan if writer.has_part(path, chunk.name)]
    if not any(part["events"] for part in parts):
        raise InputError(
            f"no event passes the selection: {entries:,} entries were read from {len(files)} files, none has an "
            f"electron or muon with pT > {config.physics.lepton_min_pt} GeV and isolation < "
            f"{config.physics.lepton_max_isolation}; check physics.* and the files"
        )
    manifest = _manifest(config, parts, contents, lost)
    writer.write_manifest(path, manifest | {"wall_s": time.monotonic() - begin, "cpu_s": cpu})
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
    identities: dict[str, FileContent] = {}
    for content in found:
        twin = identities.setdefault(content.uuid, content)
        if twin is not content:
            raise InputError(
                f"{content.file.path} and {twin.file.path} are copies of one file (UUID {content.uuid}); its events "
                "would count double. Name one of them in the fileset."
            )
    return found, lost


def _process(missing: list[Chunk], config: Config, client: Client, total: float) -> list[Lost]:
    lost: list[Lost] = []
    with track("prepare", sum(chunk.stop - chunk.start for chunk in missing), "events") as tracker:
        tasks = completed(
            client, preparation.prepare_chunk, missing, config, config.store_path.absolute(),
            name="prepare", worker_timeout=config.store.worker_timeout,
        )  # fmt: skip
        for chunk, result in tasks:
            tracker.advance(chunk.stop - chunk.start)
            if isinstance(result, Lost):
                lost.append(result)
                _refuse_losses(lost, sum(item.stop - item.start for item in lost), total, config)
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


def _is_complete(path: Path, plan: list[Chunk], lost: list[Lost]) -> bool:
    if lost or not (path / MANIFEST).exists():
        return False
    manifest = json.loads((path / MANIFEST).read_text())
    return not manifest["lost"] and {part["name"] for part in manifest["parts"]} == {
        chunk.name for chunk in plan
    }


def _manifest(
    config: Config, parts: list[dict[str, Any]], contents: list[FileContent], lost: list[Lost]
) -> dict[str, Any]:
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
        "written": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "versions": {
            "python": platform.python_version(),
            **{package: importlib.metadata.version(package) for package in _PACKAGES},
        },
    }

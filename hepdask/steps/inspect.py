"""`inspect`: what a ROOT file, a store or a run holds, in a person's words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import uproot

from hepdask import artifacts
from hepdask.config import Physics
from hepdask.errors import InputError
from hepdask.features import branches
from hepdask.folders import folder
from hepdask.source import branch_names, missing_branches, trees
from hepdask.store import open_store


def inspect(path: str | Path, deep: bool = False) -> dict[str, Any]:
    """Describe a ROOT file, a store or the folder of a run.

    Parameters
    ----------
    path : str or Path
        What to look at.
    deep : bool
        For a store: compute all checksums again.

    Returns
    -------
    dict
        ``kind`` (``"file"``, ``"store"`` or ``"run"``) and its facts, JSON-ready.

    Raises
    ------
    InputError
        It is none of the three, or cannot be read.
    StoreError
        The store is not complete.
    """
    if not str(path).endswith(".root"):
        place = folder(path)
        if (place / "zarr.json").exists():
            return _store(place, deep)
        if place.is_dir():
            return _run(place, deep)
    return _file(str(path))


def describe(facts: dict[str, Any]) -> list[str]:
    """Say what `inspect` found, in lines of text."""
    return {"file": _describe_file, "store": _describe_store, "run": _describe_run}[facts["kind"]](facts)


def _file(path: str) -> dict[str, Any]:
    wanted = branches(Physics())
    found_trees = []
    try:
        with uproot.open(path) as file:
            for name in trees(file):
                tree = file[name]
                found_trees.append(
                    {
                        "name": name,
                        "entries": int(tree.num_entries),
                        "branches": sorted(branch_names(tree)),
                        "missing": missing_branches(tree, wanted, {}),
                    }
                )
            uuid = str(file.file.uuid)
    except Exception as error:
        raise InputError(f"{path}: neither a store, a run nor a readable ROOT file: {error}") from None
    return {"kind": "file", "path": path, "uuid": uuid, "trees": found_trees}


def _describe_file(facts: dict[str, Any]) -> list[str]:
    lines = [f"ROOT file {facts['path']}"]
    for tree in facts["trees"]:
        lines.append(f"  tree {tree['name']}: {tree['entries']:,} entries, {len(tree['branches'])} branches")
        if not tree["missing"]:
            lines.append("  it has every branch that hepdask prepare needs")
        else:
            lines.append(f"  hepdask prepare would miss: {', '.join(tree['missing'])}")
    return lines + ([] if facts["trees"] else ["  it holds no tree"])


def _store(path: Path, deep: bool) -> dict[str, Any]:
    store = open_store(path)
    names = store.classes
    samples = {
        sample: {name: int((store.labels(sample) == label).sum()) for label, name in enumerate(names)}
        for sample in ("train", "test")
    }  # fmt: skip
    return {
        "kind": "store",
        "path": str(path),
        "events": len(store),
        "particles": sum(part["particles"] for part in store.parts),
        "parts": len(store.parts),
        "bytes": sum(file.stat().st_size for file in path.rglob("*") if file.is_file()),
        "samples": samples,
        "selection": store.manifest["selection"],
        "notes": store.manifest["notes"],
        "written": store.manifest["written"],
        "versions": store.manifest["versions"],
        "fingerprint": store.fingerprint,
        "damaged": store.damaged_parts() if deep else None,
    }


def _describe_store(facts: dict[str, Any]) -> list[str]:
    events, particles = facts["events"], facts["particles"]
    lines = [
        f"store {facts['path']}, written {facts['written']}",
        f"  {events:,} events, {particles / events:,.0f} particles an event, {facts['parts']} parts, "
        f"{facts['bytes'] / events:,.0f} bytes an event",
    ]
    lines += [
        f"  {row['dataset']} ({row['label']}): {row['events_selected']:,} selected of {row['events_read']:,}"
        + (f", {row['events_lost']:,} lost" if row["events_lost"] else "")
        for row in facts["selection"]
    ]
    for sample, counts in facts["samples"].items():
        lines.append(f"  {sample}: " + ", ".join(f"{count:,} {name}" for name, count in counts.items()))
    lines += [f"  note: {note}" for note in facts["notes"]]
    if facts["damaged"] is not None:
        bad = facts["damaged"]
        lines.append(f"  DAMAGED: {', '.join(bad)}" if bad else "  all checksums are right")
    return lines


def _run(path: Path, deep: bool) -> dict[str, Any]:
    store = path / "store.zarr"
    models: dict[str, Any] = {
        file.parent.name: artifacts.read_json(file) for file in sorted(path.glob("models/*/training.json"))
    }
    if not models and not store.exists():
        raise InputError(f"{path}: neither a store, a run nor a ROOT file")
    return {
        "kind": "run",
        "path": str(path),
        "store": _store(store, deep) if (store / "manifest.json").exists() else None,
        "models": {name: {"facts": m["facts"], "last_epoch": m["history"][-1]} for name, m in models.items()},
        "metrics": artifacts.read_json(path / "metrics.json"),
        "report": str(path / "report.html") if (path / "report.html").exists() else None,
    }


def _describe_run(facts: dict[str, Any]) -> list[str]:
    lines = [f"run {facts['path']}"]
    lines += (
        [f"  {line}" for line in _describe_store(facts["store"])]
        if facts["store"]
        else ["  no complete store"]
    )
    for name, model in facts["models"].items():
        last = model["last_epoch"]
        lines.append(
            f"  model {name}: {model['facts']['parameters']:,} parameters, {last['epoch']} epochs, "
            f"loss {last['loss']:.4f}, accuracy {last['accuracy']:.4f}"
        )
    lines.append(f"  report: {facts['report']}" if facts["report"] else "  not evaluated yet")
    return lines

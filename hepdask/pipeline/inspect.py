"""`inspect`: what a ROOT file, a store or a run holds, in a person's words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import uproot

from hepdask.analysis.topology import branches
from hepdask.config import Topology
from hepdask.errors import FieldNotFound, HepdaskError, InputError, InputNotFound
from hepdask.extras import require_for_addresses
from hepdask.files import atomic
from hepdask.files.folders import folder
from hepdask.files.paths import address, split_tree
from hepdask.input.branches import branch_names, missing_branches, trees
from hepdask.models.record import read_model, read_record
from hepdask.store import open_store


def inspect(path: str | Path, deep: bool = False) -> dict[str, Any]:
    """Describe a ROOT file, a store or the folder of a run.

    Parameters
    ----------
    path : str or Path
        What to look at; of a file also one tree, ``file.root:Tree``.
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
    MissingDependency
        What reads the address is not installed.
    """
    named, tree = split_tree(address(path))
    if tree is None and not named.endswith(".root"):
        place = folder(path)
        if (place / "zarr.json").exists():
            return _store(place, deep)
        if place.is_dir():
            return _run(place, deep)
    return _file(named, tree)


def describe(facts: dict[str, Any]) -> list[str]:
    """Say what `inspect` found, in lines of text."""
    return {"file": _describe_file, "store": _describe_store, "run": _describe_run}[facts["kind"]](facts)


def _file(path: str, wanted_tree: str | None = None) -> dict[str, Any]:
    require_for_addresses([path])
    wanted = branches(Topology())
    found_trees: list[dict[str, Any]] = []
    try:
        with uproot.open({path: None}) as file:
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
            if wanted_tree is not None:
                names = ", ".join(one["name"] for one in found_trees) or "none"
                found_trees = [one for one in found_trees if one["name"] == wanted_tree]
                if not found_trees:
                    raise FieldNotFound(f"{path}: no tree is called {wanted_tree}; there are: {names}")
    except InputError:
        raise
    except OSError as error:
        kind = InputNotFound if isinstance(error, FileNotFoundError) else InputError
        raise kind(f"{path}: {(error.strerror or str(error)).lower()}") from None
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
        f"  {events:,} events, {particles / events:,.0f} particles per event, {facts['parts']} parts, "
        f"{facts['bytes'] / events:,.0f} bytes per event",
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
    folders = sorted(found for found in (path / "models").glob("*") if found.is_dir())
    if not folders and not store.exists():
        raise InputError(f"{path}: neither a store, a run nor a ROOT file")
    return {
        "kind": "run",
        "path": str(path),
        "store": _store(store, deep) if (store / "manifest.json").exists() else None,
        "models": {found.name: _model(found) for found in folders},
        "metrics": atomic.read_json(path / "metrics.json"),
        "report": str(path / "report.html") if (path / "report.html").exists() else None,
    }


def _model(folder: Path) -> dict[str, Any]:
    """Say what is known of a model; one whose training has not ended, or that is damaged, has no facts."""
    try:
        record = read_record(folder)
        if record is not None:
            read_model(folder, record)
    except HepdaskError as error:
        return {"facts": None, "epochs": 0, "last_epoch": None, "problem": str(error)}
    if record is None:
        problem = "training is not complete; continue with: hepdask train CONFIG"
        return {"facts": None, "epochs": 0, "last_epoch": None, "problem": problem}
    last = record.history[-1] if record.history else None
    return {"facts": record.facts, "epochs": len(record.history), "last_epoch": last, "problem": None}


def _describe_model(name: str, model: dict[str, Any]) -> str:
    if model["problem"]:
        return f"  model {name}: {model['problem']}"
    facts, last = model["facts"], model["last_epoch"]
    words = [f"{facts[what]:,} {what}" for what in ("parameters", "trees", "nodes") if what in facts]
    if last:
        words.append(f"{model['epochs']} {'epochs' if 'parameters' in facts else 'rounds'}")
        words.append(f"loss {last['loss']:.4f}, accuracy {last['accuracy']:.4f}")
    return f"  model {name}: {', '.join(words)}"


def _describe_run(facts: dict[str, Any]) -> list[str]:
    lines = [f"run {facts['path']}"]
    lines += (
        [f"  {line}" for line in _describe_store(facts["store"])]
        if facts["store"]
        else ["  no complete store"]
    )
    lines += [_describe_model(name, model) for name, model in facts["models"].items()]
    lines.append(f"  report: {facts['report']}" if facts["report"] else "  not evaluated yet")
    return lines

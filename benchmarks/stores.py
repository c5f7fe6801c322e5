"""Stores of events that were never in a file: of any number and any length, for timing what trains on them.

An event has random particles in the ranges of real ones, and a class that its features tell of, so that there is
something to learn. Nothing else in these events is physics.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hepdask.analysis.fingerprint import fingerprints
from hepdask.analysis.scaling import Moments
from hepdask.analysis.topology import expand_columns
from hepdask.config import Config, feature_names
from hepdask.store import Store, open_store
from hepdask.store.layout import SCHEMA
from hepdask.store.writer import StoreWriter

MOST = 801


def lengths(count: int, mean: float, seed: int) -> NDArray[np.int64]:
    """Draw lengths from 1 to 801, spread as particles an event are (a gamma distribution of shape 4)."""
    if mean >= MOST:
        return np.full(count, MOST)
    rng = np.random.default_rng(seed)
    return np.clip(rng.gamma(4.0, mean / 4.0, count).astype(np.int64), 1, MOST)


def make_store(path: Path, particles: NDArray[np.int64], seed: int = 1, parts: int = 6) -> Store:
    """Write a store.

    Parameters
    ----------
    path : Path
        Folder, made here.
    particles : int64 (n,)
        Particles of each event.
    seed : int
        Of the features.
    parts : int
        Parts of the store.
    """
    config = Config.model_validate(
        {"split": {"test_fraction": 0.0, "validation_fraction": 0.0, "balance": False}}
    )
    classes = list(config.analysis.classes)
    writer = StoreWriter(path)
    writer.start({"benchmark": "synthetic"})
    rng = np.random.default_rng(seed)
    attributes = []
    for index, mine in enumerate(np.array_split(particles, parts)):
        label = index % len(classes)
        arrays = _arrays(mine, label, rng)
        about: dict[str, Any] = {
            "name": f"part-{index}", "dataset": classes[label], "file": f"part-{index}.root", "tree": "Delphes",
            "uuid": f"{index}", "origin": f"{index}", "version": f"{index}", "bad": [], "histograms": {},
            "start": 0, "stop": len(mine), "events": len(mine), "particles": int(mine.sum()),
            "moments": _moments(arrays),
        }  # fmt: skip
        writer.write_part(about["name"], arrays, about)
        attributes.append({**about, **(writer.part(about["name"]) or {}), "label": label})
    kinds = attributes[0]["moments"]
    merged = {kind: _merge([part["moments"][kind] for part in attributes]) for kind in kinds}
    writer.finish(
        {
            "schema": SCHEMA, "classes": classes, "high_level_features": list(feature_names.HIGH_LEVEL),
            "max_particles": MOST, "split": config.split.model_dump(mode="json"),
            "analysis": config.analysis.model_dump(mode="json"), "moments": merged, "selection": [], "notes": [],
            "lost": [], "parts": attributes, "versions": {}, "written": "",
        },
    )  # fmt: skip
    return open_store(path)


def _arrays(particles: NDArray[np.int64], label: int, rng: np.random.Generator) -> dict[str, NDArray]:
    count = int(particles.sum())
    columns: dict[str, NDArray] = {
        name: rng.normal(size=count).astype(np.float32) for name in ("vtxX", "vtxY", "vtxZ")
    }
    columns |= {
        name: rng.exponential(size=count).astype(np.float32) for name in ("ChPFIso", "GammaPFIso", "NeuPFIso")
    }
    columns["Pt"] = (0.5 + rng.exponential(1.0 + 0.2 * label, count)).astype(np.float32)
    columns["Eta"] = rng.uniform(-3, 3, count).astype(np.float32)
    columns["Phi"] = rng.uniform(-np.pi, np.pi, count).astype(np.float32)
    columns["kind"] = rng.integers(0, 5, count).astype(np.int8)
    columns["Charge"] = rng.integers(-1, 2, count).astype(np.int8)
    events = np.arange(len(particles))
    high_level = rng.normal(loc=0.5 * label, size=(len(particles), len(feature_names.HIGH_LEVEL))).astype(
        np.float32
    )
    offsets = np.concatenate(([0], np.cumsum(particles)))
    stored = (columns[name] for name in feature_names.STORED)
    return {
        "offsets": offsets, "entry": events, "group": events, "high_level": high_level,
        "fingerprint": fingerprints(offsets, stored, high_level), **columns,
    }  # fmt: skip


def _moments(arrays: dict[str, NDArray]) -> dict[str, Any]:
    columns = expand_columns({name: arrays[name] for name in feature_names.STORED})
    high_level = Moments.of(arrays["high_level"]).to_json()
    particles = Moments.of(np.stack(list(columns.values()), axis=1)).to_json()
    return {"particles": particles, "high_level": high_level, "high_level_all": high_level}


def _merge(moments: list[dict[str, Any]]) -> dict[str, Any]:
    total = Moments.from_json(moments[0])
    for other in moments[1:]:
        total = total.merge(Moments.from_json(other))
    return total.to_json()

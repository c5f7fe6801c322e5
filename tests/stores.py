"""Comparing stores, whatever their layout on disk."""

from __future__ import annotations

import os

import numpy as np


def columns(store):
    """Everything a store holds, in its fixed order."""
    found = store.events()
    return {
        "label": found.label, "entry": found.entry, "high_level": found.high_level, "offsets": found.offsets,
        **found.particles,
    }  # fmt: skip


def assert_equal(store, other):
    """Compare two stores event by event, column by column."""
    mine, theirs = columns(store), columns(other)
    assert mine.keys() == theirs.keys()
    for name in mine:
        assert np.array_equal(mine[name], theirs[name]), name


def paths_below(folder):
    """List all that lies in the folders of a store, also while somebody writes it."""
    found = {os.path.join(at, name) for at, folders, files in os.walk(folder) for name in folders + files}
    relative = {os.path.relpath(path, folder) for path in found}
    return {path for path in relative if os.sep in path}

"""Comparing stores, whatever their layout on disk, and changing them, as those do who know it."""

from __future__ import annotations

import json
import os
import zipfile

import numpy as np

from helpers import events as made
from hepdask.files.atomic import read_sealed, write_sealed
from hepdask.store.layout import MANIFEST, part_file


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


def members(path):
    """Everything in an archive, by name."""
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def pack(path, contents, **about):
    """Write an archive as hepdask does, of any members."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in contents.items():
            info = zipfile.ZipInfo(name)
            for key, value in about.items():
                setattr(info, key, value)
            archive.writestr(info, content)


def rewrite(store, name, changes):
    """Replace arrays of a part by others of the same shape, uncompressed within Blosc, and their checksums."""
    import numcodecs.blosc

    from hepdask.store.layout import checksum

    path = part_file(store, name)
    found = members(path)
    manifest = read_sealed(store / MANIFEST)
    part = next(part for part in manifest["parts"] if part["name"] == name)
    for array, values in changes.items():
        about = json.loads(found[f"{array}/zarr.json"])
        assert about["shape"] == list(values.shape)
        assert about["data_type"] == values.dtype.name
        [chunk] = [key for key in found if key.startswith(f"{array}/c/")]
        found[chunk] = numcodecs.blosc.Blosc("lz4", 0).encode(np.ascontiguousarray(values))
        part["checksums"][array] = checksum(values)
    pack(path, found)
    write_sealed(store / MANIFEST, manifest)


def change_manifest(store, change):
    """Change the manifest of a store as somebody does who knows how it is sealed."""
    manifest = read_sealed(store / MANIFEST)
    change(manifest)
    write_sealed(store / MANIFEST, manifest)


def arrays_of(plain):
    whole = made.to_awkward(plain, np.float32)
    return {f"{name}.{field}": whole[name][field] for name in whole.fields for field in whole[name].fields}

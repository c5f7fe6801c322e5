"""A fileset in coffea's format as a plain list of files: globs and XRootD directories expanded."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator

from hepdask.config import Config, Dataset, File, XRootD
from hepdask.errors import ConfigError, InputError
from hepdask.paths import is_url
from hepdask.source import InputFile
from hepdask.xrootd import is_xrootd, list_directory


def input_files(config: Config) -> list[InputFile]:
    """List the files of a configuration, sorted by dataset and path.

    Raises
    ------
    ConfigError
        There is no fileset, or one file stands in it twice.
    InputError
        A pattern matches nothing, or a directory cannot be listed.
    """
    if not config.fileset:
        raise ConfigError("fileset: no dataset is given; name the ROOT files and their class")
    classes = config.physics.classes
    files = [
        InputFile(
            name,
            classes.index(dataset.metadata["label"]),
            path,
            tree,
            file.checksum,
            file.uuid,
            file.num_entries,
            file.steps,
        )
        for name, dataset in config.fileset.items()
        for path, tree, file in _expand(name, dataset, config.store.xrootd)
    ]
    seen: set[tuple[str, str]] = set()
    for file in files:
        if (file.path, file.tree) in seen:
            raise ConfigError(
                f"fileset.{file.dataset}: {file.path} is listed twice; its events would count double"
            )
        seen.add((file.path, file.tree))
    return sorted(files, key=lambda file: (file.dataset, file.path))


def expand(pattern: str, bounds: XRootD) -> list[str]:
    """List the files that a path stands for: a directory, also of an XRootD server, or a glob on disk.

    A local path is one that `paths.resolved` gave.

    Raises
    ------
    InputError
        A directory cannot be listed.
    """
    if is_url(pattern):
        is_directory = is_xrootd(pattern) and pattern.endswith("/")
        return list_directory(pattern, bounds) if is_directory else [pattern]
    if os.path.isdir(pattern):
        return sorted(glob.glob(os.path.join(glob.escape(pattern), "*.root")))
    if glob.has_magic(pattern) and not os.path.exists(pattern):
        return sorted(glob.glob(pattern, recursive=True))
    return [pattern]


def _expand(name: str, dataset: Dataset, bounds: XRootD) -> Iterator[tuple[str, str, File]]:
    for pattern, tree, file in dataset.trees:
        paths = expand(pattern, bounds)
        if not paths:
            raise InputError(f"fileset.{name}: {pattern} matches no ROOT file")
        if paths != [pattern] and file != File(object_path=file.object_path):
            raise ConfigError(
                f"fileset.{name}: {pattern} stands for several files; steps, uuid and checksum belong to one file each"
            )
        yield from ((path, tree, file) for path in paths)

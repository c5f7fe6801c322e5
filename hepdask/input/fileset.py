"""A fileset in coffea's format as a plain list of files: globs and XRootD directories expanded."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator
from itertools import pairwise

from hepdask.config import Config, Dataset, File, XRootD
from hepdask.errors import ConfigError, InputNotFound
from hepdask.extras import require_for_addresses
from hepdask.files.paths import is_url
from hepdask.input.identity import look
from hepdask.input.input_file import InputFile
from hepdask.input.xrootd import is_xrootd, list_directory


def input_files(config: Config) -> list[InputFile]:
    """List the files of a configuration, sorted by dataset and path.

    Raises
    ------
    ConfigError
        There is no fileset, or one file stands in it twice.
    InputError
        A pattern matches nothing, or a directory cannot be listed.
    MissingDependency
        As in `require_readers`.
    """
    require_readers(config)
    if not config.fileset:
        raise ConfigError("fileset: no dataset is given; name the ROOT files and their class")
    classes = config.analysis.classes
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
            look(path),
        )
        for name, dataset in config.fileset.items()
        for path, tree, file in _expand(name, dataset, config.input.xrootd)
    ]
    _refuse_twice(files)
    return sorted(files, key=lambda file: (file.dataset, file.path, file.steps or ()))


def require_readers(config: Config) -> None:
    """Refuse files and routes whose protocol cannot be read here.

    Raises
    ------
    MissingDependency
        The message names the address, and the extra that reads it.
    """
    require_for_addresses(config.input.routes)
    for dataset in config.fileset.values():
        require_for_addresses(path for path, _, _ in dataset.trees)


def _refuse_twice(files: list[InputFile]) -> None:
    """Raise a ConfigError where one file stands in the fileset twice, unless its steps do not overlap."""
    ranges: dict[tuple[str, str], list[tuple[float, float, str]]] = {}
    for file in files:
        steps = [(0.0, float("inf"))] if file.steps is None else file.steps
        ranges.setdefault((file.path, file.tree), []).extend((*step, file.dataset) for step in steps)
    for (path, _), listed in ranges.items():
        listed.sort()
        for (_, stop, one), (start, _, other) in pairwise(listed):
            if start < stop:
                both = f"fileset.{one} and fileset.{other}" if one != other else f"fileset.{one}"
                raise ConfigError(
                    f"{both}: {path} is listed twice; its events would count double. Name it once, or give steps that "
                    "do not overlap"
                )


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
            raise InputNotFound(f"fileset.{name}: {pattern} matches no ROOT file")
        if paths != [pattern] and file != File(object_path=file.object_path):
            raise ConfigError(
                f"fileset.{name}: {pattern} matches several files; steps, uuid and checksum belong to one file each"
            )
        yield from ((path, tree, file) for path in paths)

"""A fileset in coffea's format as a plain list of files: globs and XRootD directories expanded."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Mapping

from hepdask.config import Config, Dataset, File
from hepdask.errors import ConfigError, InputError, MissingDependency
from hepdask.source import InputFile


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
            file.object_path,
            file.checksum,
            file.uuid,
            file.num_entries,
            file.steps,
        )
        for name, dataset in config.fileset.items()
        for path, file in _expand(name, dataset, config.store.xrootd.environment())
    ]
    seen: set[tuple[str, str]] = set()
    for file in files:
        if (file.path, file.tree) in seen:
            raise ConfigError(
                f"fileset.{file.dataset}: {file.path} is listed twice; its events would count double"
            )
        seen.add((file.path, file.tree))
    return sorted(files, key=lambda file: (file.dataset, file.path))


def _expand(name: str, dataset: Dataset, environment: Mapping[str, str]) -> Iterator[tuple[str, File]]:
    for pattern, file in dataset.trees.items():
        if "://" in pattern:
            is_directory = pattern.startswith(("root://", "xroot://")) and pattern.endswith("/")
            paths = _list_xrootd(pattern, environment) if is_directory else [pattern]
        elif os.path.isdir(pattern):
            paths = sorted(glob.glob(os.path.join(glob.escape(pattern), "*.root")))
        elif glob.has_magic(pattern) and not os.path.exists(pattern):
            paths = sorted(glob.glob(pattern, recursive=True))
        else:
            paths = [pattern]
        if not paths:
            raise InputError(f"fileset.{name}: {pattern} matches no ROOT file (relative to {os.getcwd()})")
        if paths != [pattern] and file != File(object_path=file.object_path):
            raise ConfigError(
                f"fileset.{name}: {pattern} stands for several files; steps, uuid and checksum belong to one file each"
            )
        yield from ((path, file) for path in paths)


def _list_xrootd(directory: str, environment: Mapping[str, str]) -> list[str]:
    for variable, value in environment.items():
        os.environ.setdefault(variable, value)
    try:
        from XRootD.client import URL, FileSystem  # type: ignore[attr-defined]
    except ImportError:
        raise MissingDependency(
            f"{directory}: needs the XRootD client: pip install 'hepdask[xrootd]'"
        ) from None
    url = URL(directory)
    status, listing = FileSystem(f"{url.protocol}://{url.hostid}").dirlist(url.path)
    if not status.ok:
        raise InputError(f"{directory}: cannot be listed: {status.message.strip()}")
    return sorted(directory + entry.name for entry in listing if entry.name.endswith(".root"))

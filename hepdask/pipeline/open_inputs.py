"""What the files of a fileset hold: known from before, or found by opening them on the cluster."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import closing
from itertools import pairwise
from pathlib import Path

from distributed import Client

from hepdask.clusters.task_pool import completed
from hepdask.config import Config, XRootD
from hepdask.errors import HepdaskError, InputError
from hepdask.files.atomic import read_sealed
from hepdask.input.contents import FileContent
from hepdask.input.identity import Identity, file_stamp
from hepdask.input.input_file import InputFile
from hepdask.input.lost import Lost
from hepdask.pipeline import prepare_task
from hepdask.progress import track
from hepdask.store.layout import INPUTS

logger = logging.getLogger(__name__)

Known = dict[InputFile, FileContent]


def inputs_known(path: Path) -> Known:
    """Read what the files held when they were last opened."""
    known = {}
    try:
        before = read_sealed(path / INPUTS) or {"files": []}
    except HepdaskError:
        logger.warning(f"{path / INPUTS}: damaged; the input files are opened again")
        before = {"files": []}
    for item in before["files"]:
        file = InputFile(**item["file"] | {"steps": _pairs(item["file"]["steps"])})
        identity = Identity(**item["identity"])
        known[file] = FileContent(file, identity, _pairs(item["bounds"]) or (), item["stamp"])
    return known


def _pairs(ranges: list[list[int]] | None) -> tuple[tuple[int, int], ...] | None:
    return None if ranges is None else tuple((start, stop) for start, stop in ranges)


def open_all(
    files: list[InputFile],
    config: Config,
    client: Callable[[], Client],
    known: Known,
    accepted: list[Lost],
) -> tuple[list[FileContent], list[Lost]]:
    """Say what each file holds.

    Parameters
    ----------
    files : list of InputFile
        All files of the fileset.
    config : Config
        Uses `store`.
    client : callable
        Gives the cluster, asked only where a file has to be opened.
    known : dict
        From `inputs_known`; believed as long as the driver sees a file unchanged.
    accepted : list of Lost
        Files that an earlier run gave up, and that are not tried again.

    Returns
    -------
    list of FileContent
        The files that hold something readable, sorted by dataset and path.
    list of Lost
        The others, with the reason.
    """
    known = {file: known[file] for file in files if file in known}
    given_up = {item.path: item for item in accepted if item.start < 0}
    found: list[FileContent] = []
    lost: list[Lost] = []
    unknown: list[InputFile] = []
    for file in files:
        before = known.get(file)
        if file.path in given_up:
            lost.append(given_up[file.path])
            logger.debug("%s: given up by an earlier run; --retry-lost tries it again", file)
        elif before and "://" not in file.path and before.stamp == _local_stamp(file.path):
            found.append(before)
            logger.debug("%s: unchanged since it was last opened", file)
        else:
            unknown.append(file)
            logger.debug("%s: %s", file, "may have changed since" if before else "not opened before")
    if unknown:
        with track("open files", len(unknown), "files") as tracker:
            tasks = completed(
                client(), prepare_task.describe, unknown, config, known,
                name="open", worker_timeout=config.store.worker_timeout,
            )  # fmt: skip
            with closing(tasks):
                for _, result in tasks:
                    (lost if isinstance(result, Lost) else found).append(result)
                    tracker.advance(1)
    found.sort(key=lambda content: (content.file.dataset, content.file.path, content.bounds))
    lost.sort(key=lambda item: (item.dataset, item.path))
    return found, lost


def _local_stamp(path: str) -> str | None:
    try:
        return file_stamp(path, XRootD())
    except OSError:
        return None


def refuse_copies(contents: list[FileContent]) -> None:
    """Raise an InputError where two paths lead to the same events: copies of one file, and ranges that overlap."""
    copies: dict[tuple[str, str], list[tuple[int, int, FileContent]]] = {}
    for content in contents:
        ranges = copies.setdefault((content.identity.version, content.file.tree), [])
        ranges += ((start, stop, content) for start, stop in content.bounds)
    for ranges in copies.values():
        ranges.sort(key=lambda item: item[:2])
        for (_, stop, one), (start, _, other) in pairwise(ranges):
            if start < stop:
                raise InputError(
                    f"{other.file.path} (fileset.{other.file.dataset}) and {one.file.path} "
                    f"(fileset.{one.file.dataset}) are copies of one file (UUID {one.identity.uuid}); its events from "
                    f"entry {start} on would count double. Name one of them in the fileset, or steps that do not "
                    "overlap."
                )

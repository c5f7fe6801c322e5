"""`predict`: scores of new ROOT files with a trained model, over a Dask cluster."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from distributed import Client

from hepdask import clusters, logs
from hepdask._version import __version__
from hepdask.analysis import cutflow, topology
from hepdask.clusters.task_pool import completed
from hepdask.config import DEFAULT_TREE, Config
from hepdask.errors import ConfigError, InputError
from hepdask.extras import require_for_addresses
from hepdask.files.outputs import require_folder
from hepdask.files.paths import address, is_url, local_path, split_tree
from hepdask.inference import classifier
from hepdask.inference.score_files import Format, columns, write_scores
from hepdask.input import read_bytes
from hepdask.input.contents import FileContent
from hepdask.input.fileset import expand
from hepdask.input.identity import look
from hepdask.input.input_file import Chunk, InputFile
from hepdask.input.lost import Lost
from hepdask.models.record import ModelRecord, read_model
from hepdask.monitoring import metrics
from hepdask.pipeline import prepare_task
from hepdask.pipeline.predict_task import Scored, score_chunk
from hepdask.progress import track

logger = logging.getLogger(__name__)

_SUFFIXES: dict[str, Format] = {".root": "root", ".parquet": "parquet"}


@dataclass(frozen=True)
class Predicted:
    """What `predict` did.

    Attributes
    ----------
    files : list of Path
        One for each input file, in their order.
    events : int
        Input events, and rows in all files.
    outcome : dict of int
        Events by what became of them: ``selected`` has scores, all others are reasons why there are none.
    wall_s : float
        Time [s].
    """

    files: list[Path]
    events: int
    outcome: dict[str, int]
    wall_s: float


def predict(
    model: str | Path,
    files: str | Path | Sequence[str | Path],
    out: str | Path,
    format: Format | None = None,
    tree: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    client: Client | None = None,
    code: Sequence[str | Path] = (),
) -> Predicted:
    """Score every event of ROOT files with a trained model.

    Parameters
    ----------
    model : str or Path
        The folder ``models/NAME`` of a run, readable from every worker.
    files : str, Path or sequence of them
        Paths, globs, directories, ``root://`` or other addresses that fsspec knows, also with the tree behind
        a ``.root`` (``file.root:Tree``); TTree or RNTuple. Local paths begin in the working directory of the caller.
    out : str or Path
        A folder, in which each input file gets one of its name; or, for one input file, a ``.root`` or ``.parquet``
        file. Files of the same name are replaced, each whole.
    format : {"root", "parquet"}, optional
        Default what `out` ends with, else ROOT.
    tree : str, optional
        Name of the tree in the input files, where the path does not have it; default ``Delphes``.
    overrides : mapping, optional
        Keys of the configuration under ``analysis.branches``, ``analysis.collections``, ``store`` (how files are read)
        and ``cluster``, as in `load_config`.
    client : distributed.Client, optional
        Where the tasks run; by default on the cluster of `overrides`, else on this machine.
    code : sequence of str or Path
        Where the model needs functions of the user: their files or modules, as in `load_model`.

    Returns
    -------
    Predicted

    Raises
    ------
    InputError
        There is no such model, a pattern matches nothing, or files could not be read; all others are written.
    ConfigError
        An override is not allowed, code is needed that `code` does not name, or is another, or two output files would
        have one name, or that of an input file.
    MissingDependency
        The library of the model, or what reads the files, is not installed.
    OutputError
        The scores cannot be written; said before any file is read.
    ClusterError
        The cluster has no workers for too long.
    """
    logs.show()
    begin = time.monotonic()
    folder, record = classifier.find(model)
    config = classifier.configuration(folder, record, overrides, code)
    classifier.require_library(record, folder)
    read_model(folder, record)  # a damaged file is told before a cluster starts
    inputs = _inputs([files] if isinstance(files, str | Path) else files, tree, config)
    targets = _targets(list(inputs), local_path(out), format)
    for place in {target.parent for target in targets.values()}:
        require_folder(place)
    outputs = _Outputs(targets, record, config)
    topology.warm_up(config.analysis)
    with clusters.connect(config.cluster, client) as client:
        metrics.serve(client)
        chunks: list[Chunk] = []
        for content in _open(inputs, config, client):
            chunks += outputs.expect(content)
        with track("predict", sum(chunk.stop - chunk.start for chunk in chunks), "events") as tracker:
            tasks = completed(
                client, _score_and_count, chunks, folder.absolute(), record.identity, config,
                name="predict", worker_timeout=config.store.worker_timeout,
            )  # fmt: skip
            with closing(tasks):
                for chunk, (result, read) in tasks:
                    metrics.tell(client, metrics.bytes_read(read))
                    outputs.add(chunk, result)
                    tracker.advance(chunk.stop - chunk.start)
    outputs.raise_failures()
    done = Predicted(list(targets.values()), outputs.events, outputs.outcome, time.monotonic() - begin)
    rejected = ", ".join(f"{count:,} {reason}" for reason, count in done.outcome.items() if count)
    logger.info(f"{out}: {done.events:,} events of {len(inputs)} files ({rejected}) in {done.wall_s:.0f} s")
    return done


def _describe_and_count(file: InputFile, config: Config) -> tuple[FileContent | Lost, dict[str, int]]:
    """Open a file on a worker; give what it holds, and the bytes read by server."""
    return prepare_task.describe(file, config, {}), read_bytes.take()


def _score_and_count(
    chunk: Chunk, folder: Path, identity: str, config: Config
) -> tuple[Scored | Lost, dict[str, int]]:
    """Score a chunk on a worker; give the scores, and the bytes read by server."""
    return score_chunk(chunk, folder, identity, config), read_bytes.take()


class _Outputs:
    """Gathers the chunks of each file, and writes the file when all are there."""

    def __init__(self, targets: Mapping[str, Path], record: ModelRecord, config: Config) -> None:
        self._targets, self._record = targets, record
        self._words = cutflow.words(config.analysis)
        self._contents: dict[str, FileContent] = {}
        self._waiting: dict[str, dict[int, Scored]] = {}
        self._failures: dict[str, str] = {}
        self.events = 0
        self.outcome = dict.fromkeys(self._words, 0)

    def expect(self, content: FileContent | Lost) -> list[Chunk]:
        """Take what a file holds; give the chunks that have to come."""
        if isinstance(content, Lost):
            self._failures[content.path] = content.reason
            return []
        self._contents[content.file.path] = content
        self._waiting[content.file.path] = {}
        if not content.chunks:
            self._write(content, [])
        return content.chunks

    def add(self, chunk: Chunk, result: Scored | Lost) -> None:
        """Take what became of a chunk."""
        path = chunk.file.path
        if isinstance(result, Lost):
            self._failures.setdefault(path, result.reason)
            self._waiting[path].clear()
            return
        if path in self._failures:
            return
        pieces = self._waiting[path]
        pieces[chunk.start] = result
        content = self._contents[path]
        if len(pieces) == len(content.chunks):
            self._write(content, [pieces[start] for start in sorted(pieces)])
            pieces.clear()

    def raise_failures(self) -> None:
        """Raise an InputError that names the files without scores, where there are any."""
        if not self._failures:
            return
        shown = "\n  ".join(list(self._failures.values())[:5])
        more = f"\n  and {len(self._failures) - 5} more" if len(self._failures) > 5 else ""
        raise InputError(
            f"{len(self._failures)} of {len(self._targets)} files could not be scored (the others are written):\n  "
            f"{shown}{more}"
        )

    def _write(self, content: FileContent, pieces: Sequence[Scored]) -> None:
        classes = list(self._record.classes)
        scores = np.concatenate(
            [*(piece.scores for piece in pieces), np.empty((0, len(classes)), np.float32)]
        )
        reason = np.concatenate([*(piece.reason for piece in pieces), np.empty(0, np.int16)])
        target = self._targets[content.file.path]
        description = {
            "file": content.file.path,
            "uuid": content.identity.uuid,
            "tree": content.file.tree,
            "model": self._record.model,
            "training": self._record.key,
            "classes": classes,
            "reasons": self._words,
            "hepdask": __version__,
        }
        write_scores(target, _SUFFIXES[target.suffix], columns(scores, reason, classes), description)
        self.events += len(scores)
        for code, count in enumerate(np.bincount(reason, minlength=len(self._words))):
            self.outcome[self._words[code]] += int(count)


def _inputs(patterns: Sequence[str | Path], tree: str | None, config: Config) -> dict[str, str]:
    """List the files and the tree of each, each once, in the order in which they are named."""
    require_for_addresses([*map(str, patterns), *config.input.routes])
    inputs: dict[str, str] = {}
    for named in patterns:
        pattern, own = split_tree(address(named))
        if own and tree and own != tree:
            raise ConfigError(
                f"{named}: the tree is {own} in the path, and {tree} in --tree; leave one of them out"
            )
        found = expand(pattern, config.input.xrootd)
        if not found:
            raise InputError(f"{pattern}: matches no ROOT file")
        for path in found:
            wanted = own or tree or DEFAULT_TREE
            if inputs.setdefault(path, wanted) != wanted:
                raise ConfigError(
                    f"{path}: named with the trees {inputs[path]} and {wanted}; score them one after the other into "
                    "different folders"
                )
    return inputs


def _targets(paths: Sequence[str], out: Path, format: Format | None) -> dict[str, Path]:
    """Say which file the scores of each input file go to."""
    if out.suffix in _SUFFIXES and not out.is_dir():
        if len(paths) != 1:
            raise ConfigError(f"{out}: {len(paths)} input files need a folder, one file for each is written")
        if format not in (None, _SUFFIXES[out.suffix]):
            raise ConfigError(f"{out}: the format is {format}, the name says {_SUFFIXES[out.suffix]}")
        targets = {paths[0]: out}
    else:
        suffix = f".{format or 'root'}"
        targets = {path: out / f"{_stem(path)}{suffix}" for path in paths}
    owners: dict[Path, str] = {}
    for path, target in targets.items():
        if owners.setdefault(target, path) != path:
            raise ConfigError(
                f"{path} and {owners[target]} have the same name, and so would their scores ({target}); score them one "
                "after the other into different folders"
            )
        if target.exists() and any(target.samefile(one) for one in paths if _is_file(one)):
            raise ConfigError(f"{target}: the scores would replace an input file; give another --out")
    return targets


def _is_file(path: str) -> bool:
    return not is_url(path) and Path(path).is_file()


def _stem(path: str) -> str:
    name = PurePosixPath(urlsplit(path).path if is_url(path) else path).name
    return name.removesuffix(".root") or "scores"


def _open(inputs: Mapping[str, str], config: Config, client: Client) -> list[FileContent | Lost]:
    """Say what each file holds, in their order."""
    files = [InputFile("", 0, path, tree, seen=look(path)) for path, tree in inputs.items()]
    found: dict[str, FileContent | Lost] = {}
    with track("open files", len(files), "files") as tracker:
        tasks = completed(
            client, _describe_and_count, files, config,
            name="open", worker_timeout=config.store.worker_timeout,
        )  # fmt: skip
        with closing(tasks):
            for file, (result, read) in tasks:
                metrics.tell(client, metrics.bytes_read(read))
                found[file.path] = result
                tracker.advance(1)
    return [found[path] for path in inputs]

"""Files of a run that tell whether a step is up to date: written whole, read back with their key."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from hepdask.errors import HepdaskError
from hepdask.files.outputs import writing

#: What the names of files begin with that are not whole yet.
TEMPORARY = ".writing-"

_SEAL = "digest"


def digest(value: Any) -> str:
    """Digest of anything JSON can hold."""
    return hashlib.blake2b(json.dumps(value, sort_keys=True).encode(), digest_size=16).hexdigest()


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file under a temporary name beside it, then rename it into place: it is whole or not there.

    Objects of an object store appear whole by themselves.

    Parameters
    ----------
    path : Path
        The file; folders above it are made.
    content : bytes
        What it will hold.

    Raises
    ------
    OutputError
        The folder cannot be written; nothing is left behind then.
    """
    if not isinstance(path, Path):
        path.write_bytes(content)
        return
    with written_whole(path) as temporary:
        temporary.write_bytes(content)


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Give the block a temporary file beside `path` to write, and rename it into place after it.

    Raises
    ------
    OutputError
        The folder cannot be written; nothing is left behind then.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with renamed_to(path) as temporary:
            yield temporary


@contextmanager
def renamed_to(path: Path) -> Iterator[Path]:
    """Give the block the name of a file or folder to make beside `path`, and rename that to `path` after it.

    No other process, on this machine or another, has the name. Nothing is left of it when the block fails.

    Raises
    ------
    OutputError
        It cannot be renamed. What the block raises is raised as it is.
    """
    temporary = path.with_name(f"{TEMPORARY}{uuid.uuid4().hex}")
    try:
        yield temporary
        with writing(path):
            os.replace(temporary, path)
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write JSON so that it is either whole or not there."""
    write_bytes(path, json.dumps(value, indent=1).encode())


def read_json(path: Path) -> Any:
    """Read JSON; None where there is no such file, a HepdaskError where it is damaged."""
    if not path.exists():
        return None
    try:
        return json.loads(path.read_text())
    except OSError as error:
        raise HepdaskError(f"{path}: cannot be read: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise HepdaskError(
            f"{path}: damaged ({error}); remove it and run the step that writes it again"
        ) from None


def write_sealed(path: Path, value: dict[str, Any]) -> None:
    """Write a JSON object with the digest of all else that is in it, by which `read_sealed` notices damage."""
    write_json(path, sealed(value))


def read_sealed(path: Path) -> dict[str, Any] | None:
    """Read what `write_sealed` wrote, without the digest; None where there is no such file.

    Raises
    ------
    HepdaskError
        It is not JSON, or not what was written.
    """
    value = read_json(path)
    if value is None and not path.exists():
        return None
    found = unsealed(value)
    if found is None:
        raise HepdaskError(
            f"{path}: damaged, it is not what was written; remove it and run the step that writes it again"
        )
    return found


def sealed(value: dict[str, Any]) -> dict[str, Any]:
    """Add the digest of all else that is in an object."""
    return {**value, _SEAL: _seal(value)}


def unsealed(value: Any) -> dict[str, Any] | None:
    """Give what `sealed` was given; None where this is something else."""
    if not isinstance(value, dict):
        return None
    rest = {key: item for key, item in value.items() if key != _SEAL}
    return rest if value.get(_SEAL) == _seal(rest) else None


def _seal(value: dict[str, Any]) -> str:
    return digest(json.loads(json.dumps(value)))  # as it will be read: keys are strings, tuples are lists

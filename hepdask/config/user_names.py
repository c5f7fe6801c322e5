"""What users may call their classes, datasets, models, selections and features."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

from hepdask.config.feature_names import HIGH_LEVEL, PARTICLE, RECORD, STORED

_LONGEST = 150  # bytes: a file system takes 255, and more is put behind and before names


def usable(name: str) -> str:
    """Give a name back if it can be one.

    Raises
    ------
    ValueError
        It is empty, too long for the name of a file, or holds a slash or what cannot be seen.
    """
    if "/" in name:
        raise ValueError(
            f"{name!r} contains a slash, but becomes part of file and column names; choose another"
        )
    return usable_dataset(name)


def usable_dataset(name: str) -> str:
    """Give the name of a dataset back if it can be one: as others, but those of CMS hold slashes.

    Raises
    ------
    ValueError
        It is empty, too long for the name of a file, or holds what cannot be seen.
    """
    if not name.strip():
        raise ValueError("a name cannot be empty")
    if name != name.strip():
        raise ValueError(f"{name!r} starts or ends with a space; remove it")
    if name in (".", ".."):
        raise ValueError(f"{name!r} cannot be a name: it stands for a folder")
    if any(unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp") for letter in name):
        raise ValueError(f"{name!r} contains a control character, but becomes part of file names")
    if (size := len(name.encode())) > _LONGEST:
        raise ValueError(
            f"{name[:20]!r}… is {size} bytes long, but becomes part of file names: at most {_LONGEST}"
        )
    return name


def refuse_likes(where: str, names: Iterable[str], ours: bool = False) -> None:
    """Raise a ValueError where two names are one in the names of files, figures and columns.

    Parameters
    ----------
    where : str
        Path of the names in the configuration.
    names : iterable of str
        The user's names.
    ours : bool
        They may not be those of the program's features and fields either.
    """
    taken = {_left_of(name): name for name in (*HIGH_LEVEL, *PARTICLE, *STORED, *RECORD)} if ours else {}
    seen: dict[str, str] = {}
    for name in names:
        left = _left_of(name)
        if left in taken:
            same = "the name of" if name == taken[left] else f"like {taken[left]!r},"
            raise ValueError(f"{where}.{name} is {same} a built-in feature or field; choose another")
        if left in seen:
            raise ValueError(
                f"{where}: {seen[left]!r} and {name!r} differ only in what file and column names drop (case, "
                "spaces, punctuation); rename one of them"
            )
        seen[left] = name


def _left_of(name: str) -> str:
    """Give what is left of a name where only lower-case letters and digits are kept apart."""
    plain = unicodedata.normalize("NFKC", name).casefold()
    return re.sub(r"\W+", "-", plain).strip("-").replace("_", "-")

"""`new`: a folder for an analysis of the user's own, with a configuration and functions to edit."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from hepdask.errors import ConfigError
from hepdask.paths import local_path

_FILES = ("config.yaml", "analysis.py", "README.md")


def new(path: str | Path) -> Path:
    """Make a project folder: `config.yaml`, `analysis.py` with a selection and a feature, a README, and `data/`.

    Parameters
    ----------
    path : str or Path
        The folder; its parents are made where they are missing.

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    ConfigError
        There is something of this name already, or it cannot be made.
    """
    folder = local_path(path)
    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        raise ConfigError(f"{folder}: exists already; give another name, nothing in it was changed") from None
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be made: {error.strerror}") from None
    templates = files("hepdask") / "project"
    for name in _FILES:
        text = (templates / name).read_text()
        (folder / name).write_text(text.replace("{name}", folder.resolve().name))
    for label in ("signal", "background"):
        (folder / "data" / label).mkdir(parents=True)
    return folder

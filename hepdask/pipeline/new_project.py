"""`new`: a folder for an analysis of the user's own, with a configuration and functions to edit."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from hepdask.errors import ConfigError, OutputError
from hepdask.files.atomic import write_bytes
from hepdask.files.outputs import writing
from hepdask.files.paths import local_path

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
        There is something of this name already.
    OutputError
        It cannot be made.
    """
    folder = local_path(path)
    try:
        with writing(folder):
            folder.mkdir(parents=True)
    except OutputError as error:
        if not isinstance(error.__cause__, FileExistsError):
            raise
        raise ConfigError(f"{folder}: exists already; give another name, nothing in it was changed") from None
    templates = files("hepdask") / "project_template"
    for name in _FILES:
        text = (templates / name).read_text()
        write_bytes(folder / name, text.replace("{name}", folder.resolve().name).encode())
    for label in ("signal", "background"):
        (folder / "data" / label).mkdir(parents=True)
    return folder

"""Opening a store: there must be one, complete, undamaged, and of this version."""

from __future__ import annotations

from pathlib import Path

from hepdask.errors import HepdaskError, StoreError, StoreNotFound
from hepdask.files.atomic import read_json, unsealed
from hepdask.files.folders import folder
from hepdask.store.column_checks import fault
from hepdask.store.layout import MANIFEST, ROOT, SCHEMA
from hepdask.store.reader import Store


def open_store(path: str | Path, fold: tuple[int, int] | None = None) -> Store:
    """Open a store that `prepare` has finished.

    Parameters
    ----------
    path : str or Path
        Folder of the store.
    fold : (int, int), optional
        For cross-validation, which of how many folds of the training split is the sample ``"validation"``; the others
        are ``"fit"``.

    Returns
    -------
    Store

    Raises
    ------
    StoreNotFound
        There is no store.
    StoreError
        It is not complete, or another version wrote it.
    """
    path = folder(path)
    if not (path / ROOT).exists():
        raise StoreNotFound(f"{path}: there is no store; make it with: hepdask prepare CONFIG")
    file = path / MANIFEST
    try:
        document = read_json(file)
    except HepdaskError as error:
        raise StoreError(f"{error} (hepdask prepare CONFIG)") from None
    if document is None and not file.exists():
        raise StoreError(f"{path}: not complete; continue with: hepdask prepare CONFIG")
    if isinstance(document, dict) and document.get("schema") != SCHEMA:
        raise StoreError(
            f"{path}: schema {document.get('schema')}, this version reads {SCHEMA}; prepare it again"
        )
    manifest = unsealed(document)
    wrong = "it is not what was written" if manifest is None else fault(manifest)
    if manifest is None or wrong:
        raise StoreError(f"{file}: damaged: {wrong}; remove it and run: hepdask prepare CONFIG")
    return Store(path, manifest, fold)

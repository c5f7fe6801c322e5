"""The extras of the installation: what each brings, and the refusal of work for which one is missing.

Modules are looked for, not imported: that is quick, and loads nothing into a driver that only workers use.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterable

from hepdask.errors import MissingDependency

#: Each extra of pyproject.toml that adds to what hepdask can do, with the modules it brings.
EXTRAS = {
    "train": ("tensorflow", "keras"),
    "trees": ("xgboost",),
    "tune": ("optuna",),
    "simulate": ("pythia8mc", "fastjet"),
    "xrootd": ("XRootD", "fsspec_xrootd"),
    "s3": ("s3fs",),
    "onnx": ("onnx", "onnxruntime"),
    "metrics": ("prometheus_client",),
}

#: Beginnings of addresses to the extra that reads them; what is not here, the core reads.
_PROTOCOLS = {"root://": "xrootd", "xroot://": "xrootd", "s3://": "s3", "s3a://": "s3"}


def require(extra: str, work: str) -> None:
    """Refuse work for which an extra is not installed.

    Parameters
    ----------
    extra : str
        One of `EXTRAS`.
    work : str
        What needs it, as the subject of a sentence.

    Raises
    ------
    MissingDependency
        A module is missing; the message names it, and the line that installs it.
    """
    missing = [module for module in EXTRAS[extra] if importlib.util.find_spec(module) is None]
    if not missing:
        return
    where = ""
    if extra == "train" and sys.version_info >= (3, 13):
        where = " (in an environment with Python 3.11 or 3.12: TensorFlow 2.18 has nothing for later ones)"
    raise MissingDependency(
        f"{work} needs {' and '.join(missing)}, not installed here: pip install 'hepdask[{extra}]'{where}"
    )


def require_for_addresses(addresses: Iterable[str]) -> None:
    """Refuse addresses whose protocol needs an extra that is not installed.

    Raises
    ------
    MissingDependency
        As in `require`; the message begins with the address.
    """
    for address in addresses:
        for beginning, extra in _PROTOCOLS.items():
            if address.startswith(beginning):
                require(extra, address)

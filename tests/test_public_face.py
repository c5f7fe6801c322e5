"""What a person sees of the packages: completion shows the public names, and importing costs nothing."""

from __future__ import annotations

import importlib
import pkgutil
import subprocess
import sys
from types import ModuleType

import pytest

import hepdask

pytestmark = pytest.mark.unit

#: None of these may be loaded by `import hepdask`.
HEAVY = (
    "awkward", "coffea", "dask", "distributed", "hist", "keras", "matplotlib", "numba", "numpy", "optuna", "pandas",
    "pyarrow", "pydantic", "scipy", "sklearn", "tensorflow", "uproot", "xgboost", "yaml", "zarr",
)  # fmt: skip

PACKAGES = [
    "hepdask",
    *(
        found.name
        for found in pkgutil.walk_packages(hepdask.__path__, "hepdask.")
        if found.ispkg and "project_template" not in found.name
    ),
]


def loaded(package: str) -> ModuleType:
    return importlib.import_module(package)


def test_packages_are_found() -> None:
    assert {"hepdask", "hepdask.pipeline", "hepdask.models.networks", "hepdask.analysis.topology"} <= set(
        PACKAGES
    )


def test_importing_hepdask_loads_nothing_heavy() -> None:
    code = f"import sys, hepdask; print(*(name for name in {HEAVY!r} if name in sys.modules))"
    words = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert words.stdout.split() == []


def test_looking_at_hepdask_loads_nothing_heavy() -> None:
    code = f"import sys, hepdask; dir(hepdask); print(*(name for name in {HEAVY!r} if name in sys.modules))"
    words = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert words.stdout.split() == []


@pytest.mark.parametrize("package", PACKAGES)
def test_completion_shows_the_public_names_only(package: str) -> None:
    module = loaded(package)
    shown = {name for name in dir(module) if not (name.startswith("__") and name.endswith("__"))}
    assert shown == set(module.__all__)


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_is_there(package: str) -> None:
    module = loaded(package)
    assert len(set(module.__all__)) == len(module.__all__)
    for name in module.__all__:
        assert getattr(module, name) is not None


@pytest.mark.parametrize("package", PACKAGES)
def test_names_that_are_not_there_are_an_attribute_error(package: str) -> None:
    with pytest.raises(AttributeError, match="nonsense"):
        _ = loaded(package).nonsense


@pytest.mark.parametrize("package", PACKAGES)
def test_no_name_hides_a_module_of_its_own_name(package: str) -> None:
    module = loaded(package)
    below = {found.name for found in pkgutil.iter_modules(module.__path__)}
    for name in below - {"__main__"}:
        found = getattr(module, name, None) if name in dir(module) or name in vars(module) else None
        assert found is None or isinstance(found, ModuleType), f"{package}.{name} hides {package}/{name}.py"


def test_the_version_has_one_place() -> None:
    from importlib.metadata import version

    assert hepdask.__version__ == version("hepdask")


def test_types_are_published() -> None:
    from importlib.resources import files

    assert files("hepdask").joinpath("py.typed").is_file()

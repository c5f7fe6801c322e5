"""The order of the house: imports run one way, from the command line down to errors, and never in a circle."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parent.parent / "hepdask"

#: From the top to the bottom: each may import what stands below it. "" is the package's own `__init__`.
ORDER = (
    "__main__", "cli", "", "notebook", "pipeline", "exchange", "tuning", "training", "inference", "engines", "models",
    "kernels", "batches", "store", "clusters", "monitoring", "simulation", "report", "evaluation", "distributed",
    "analysis", "input", "config", "files", "progress", "logs", "extras", "errors", "user_environment", "_face",
    "_version",
)  # fmt: skip

#: Rooms that stand apart, with what they may never import.
FORBIDDEN = {
    "distributed": {"hepdask"},
    "analysis": {"dask", "distributed", "dask_jobqueue", "hepdask.distributed", "hepdask.clusters"},
    "clusters": {"hepdask.analysis", "hepdask.input", "hepdask.store", "hepdask.models"},
}


def imported(path: Path, package: str) -> Iterator[str]:
    """Name what a file imports, anywhere in it: inside functions, and for types only, too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")
            base = ".".join(parents[: len(parents) - node.level + 1]) if node.level else ""
            module = ".".join(part for part in (base, node.module or "") if part)
            yield from (f"{module}.{alias.name}" for alias in node.names)


def read_imports(root: Path) -> tuple[dict[str, set[str]], dict[str, set[str]]]:
    """Give the modules of `hepdask` each module imports, and all that it imports, by their whole names."""
    files = {}
    for path in sorted(root.rglob("*.py")):
        words = ("hepdask", *path.relative_to(root).with_suffix("").parts)
        if "project_template" not in words:
            files[".".join(words[:-1] if words[-1] == "__init__" else words)] = path
    everything = {
        name: set(imported(path, name if path.name == "__init__.py" else name.rpartition(".")[0]))
        for name, path in files.items()
    }

    def module_of(name: str) -> str | None:
        while name and name not in files:
            name = name.rpartition(".")[0]
        return name or None

    own = {
        name: {module for one in names if (module := module_of(one)) and module != name}
        for name, names in everything.items()
    }
    return own, everything


def circle(arrows: Mapping[str, set[str]]) -> list[str]:
    """Find modules that import each other in a circle; empty where there are none."""
    done: set[str] = set()

    def walk(name: str, way: list[str]) -> list[str]:
        if name in way:
            return [*way[way.index(name) :], name]
        if name in done:
            return []
        for below in sorted(arrows.get(name, ())):
            if found := walk(below, [*way, name]):
                return found
        done.add(name)
        return []

    for name in sorted(arrows):
        if found := walk(name, []):
            return found
    return []


def room(module: str) -> str:
    """Name the package or loose module at the root that a module belongs to."""
    return module.split(".")[1] if "." in module else ""


OWN, EVERYTHING = read_imports(ROOT)


def test_all_files_were_read_and_their_imports_found() -> None:
    assert len(OWN) > 150
    assert "hepdask.pipeline.prepare" in OWN["hepdask.pipeline.run"]
    assert "hepdask.exchange.model_files" in OWN["hepdask.pipeline.export"]  # inside a function


def test_no_circle_among_modules() -> None:
    assert circle(OWN) == []


def test_circles_are_found() -> None:
    assert circle({"a": {"b"}, "b": {"c", "d"}, "c": set(), "d": {"b"}}) == ["b", "d", "b"]


def test_every_room_has_its_place_in_the_order() -> None:
    assert {room(module) for module in OWN} == set(ORDER)


def test_no_arrow_runs_back_up() -> None:
    place = {name: number for number, name in enumerate(ORDER)}
    upwards = [
        f"{module} imports {other}"
        for module, others in OWN.items()
        for other in others
        if room(module) != room(other) and place[room(other)] < place[room(module)]
    ]
    assert upwards == []


def test_few_modules_stand_loose_at_the_root() -> None:
    loose = sorted(path.stem for path in ROOT.glob("*.py") if not path.stem.startswith("__"))
    assert len(loose) <= 10, loose


@pytest.mark.parametrize("apart", FORBIDDEN)
def test_rooms_that_stand_apart(apart: str) -> None:
    inside = f"hepdask.{apart}"
    broken = [
        f"{module} imports {name}"
        for module, names in EVERYTHING.items()
        if module == inside or module.startswith(f"{inside}.")
        for name in names
        if not (name == inside or name.startswith(f"{inside}."))
        and any(name == one or name.startswith(f"{one}.") for one in FORBIDDEN[apart])
    ]
    assert broken == []

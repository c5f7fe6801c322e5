"""What the compiled kernels export is what Python calls: no function is left over on either side."""

import ast
import re
from pathlib import Path

import pytest

from hepdask import kernels

FOLDER = Path(kernels.__file__).parent


def exported(source):
    """Names of the functions in blocks of ``extern "C"``: those that begin at the start of a line."""
    code = re.sub(r"//[^\n]*", "", source)
    found = []
    for start in (match.end() for match in re.finditer(r'extern "C" \{', code)):
        depth, end = 1, start
        while depth:
            depth += {"{": 1, "}": -1}.get(code[end], 0)
            end += 1
        found += re.findall(r"^\w[\w ]*[\s*](\w+)\(", code[start:end], re.MULTILINE)
    return found


def called(source):
    """Names of functions that are called on the library, and those whose types are declared."""
    nodes = list(ast.walk(ast.parse(source)))
    calls = {
        node.func.attr
        for node in nodes
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
    }
    declared = {
        key.value
        for node in nodes
        if isinstance(node, ast.Dict)
        for key in node.keys
        if isinstance(key, ast.Constant)
    }
    return [{name for name in names if str(name).startswith("hepdask_")} for names in (calls, declared)]


@pytest.mark.parametrize("kernel", ["dense", "recurrent"])
def test_every_exported_function_is_declared_and_called_from_python(kernel):
    functions = exported((FOLDER / f"{kernel}.cpp").read_text())
    assert functions
    assert all(name.startswith(f"hepdask_{kernel}_") for name in functions)
    assert len(set(functions)) == len(functions)
    calls, declared = called((FOLDER / f"{kernel}.py").read_text())
    assert set(functions) == calls == declared


def test_all_kernels_are_looked_at():
    assert {source.stem for source in FOLDER.glob("*.cpp")} == {"dense", "recurrent"}
    assert not any(re.search(r'extern "C"', header.read_text()) for header in FOLDER.glob("*.h"))

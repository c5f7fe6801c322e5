"""The notebooks of docs/ run from the first cell to the last, on small files in place of simulated ones."""

import nbclient
import nbformat
import pytest
from helpers.notebooks import FOLDER, NOTEBOOKS, folder  # noqa: F401

WATCH = "import faulthandler; faulthandler.dump_traceback_later(100, repeat=True, file=open({stacks!r}, 'w'))"


@pytest.mark.slow
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebook_runs(name, folder, request, monkeypatch):  # noqa: F811
    if name.startswith("5"):
        request.getfixturevalue("horovod")
    monkeypatch.setenv("MPLBACKEND", "agg")
    notebook = nbformat.read(FOLDER / name, as_version=4)
    stacks = folder / f"{name}.stacks"
    notebook.cells.insert(0, nbformat.v4.new_code_cell(WATCH.format(stacks=str(stacks))))
    client = nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(folder)}})
    try:
        client.execute()
    finally:
        # where its kernel was if it hung, for those who look into a failure
        print(stacks.read_text() if stacks.exists() else "its kernel did not start")


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebooks_are_kept_without_outputs(name):
    notebook = nbformat.read(FOLDER / name, as_version=4)
    nbformat.validate(notebook)
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in notebook.cells)


def test_every_notebook_is_listed():
    text = (FOLDER.parent / "notebooks.md").read_text()
    assert NOTEBOOKS
    assert all(f"notebooks/{name}" in text for name in NOTEBOOKS)

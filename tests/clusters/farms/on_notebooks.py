"""Notebooks on a farm: those of the docs that name a cluster, and the card while jobs wait, seen in a browser."""

import re
from pathlib import Path

import nbclient
import nbformat
import pytest
from clusters.farms.daemons import output
from helpers.browser import chromium
from helpers.lab import card, lab, open_notebook, run_next_cell, write_notebook
from helpers.notebooks import FOLDER, NOTEBOOKS, folder  # noqa: F401
from helpers.requirements import has_horovod, require

CLUSTER = re.compile(r"^cluster = .*$", re.MULTILINE)


def on(cluster, name):
    """Give a notebook with another cluster, and in how many cells one is named."""
    notebook = nbformat.read(FOLDER / name, as_version=4)
    named = 0
    for cell in notebook.cells:
        cell.source, found = CLUSTER.subn(lambda _: f"cluster = {cluster!r}", cell.source)
        named += found
    return notebook, named


@pytest.mark.parametrize("name", NOTEBOOKS[1:])
def test_notebook_runs_on_a_farm(farm, make_settings, name, folder, monkeypatch):  # noqa: F811
    if name.startswith("5"):
        require(has_horovod(), "Horovod is not built (make horovod)")
    monkeypatch.setenv("MPLBACKEND", "agg")
    settings = make_settings()
    notebook, named = on(settings, name)
    assert named == 1, "a notebook names its cluster in one place"
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(folder)}}).execute()
    logs = [path.read_text() for path in Path(settings["log_directory"]).glob("*.err")]
    assert sum("Registered to" in log for log in logs) >= 2, "workers in jobs of the farm"


def test_card_while_jobs_wait(farm, make_settings, tmp_path):
    """All nodes are taken by others at first; the card says so, and changes when they are free."""
    others = [
        re.search(r"\d+", output("sbatch", "-c2", "-o", "/dev/null", "--wrap", "sleep 600"))[0]
        for _ in range(3)
    ]
    settings = make_settings(job_extra_directives=["--nice=100"])
    write_notebook(
        tmp_path / "card.ipynb",
        [f"import hepdask\nhere = hepdask.session({settings!r})\nhere", "here.close()"],
    )
    jobs = "[...document.querySelectorAll('.jp-OutputArea-output table td')]"
    with lab(tmp_path) as address, chromium() as browser:
        browser.size(1200, 800)
        open_notebook(browser, address, "card.ipynb")
        run_next_cell(browser)
        browser.wait(f"{jobs}.some(one => one.innerText.match(/2 pending|1 pending.*1 pending/))", 120)
        shown = card(browser)
        assert re.search(r"pending \((Resources|Priority)\)", shown["jobs"])
        assert shown["workers"] == "none yet; waiting for at most 120 s (start_timeout)"
        browser.screenshot(tmp_path / "pending.png")
        for job in others:
            farm.kill(job)
        browser.wait(f"{jobs}.some(one => one.innerText == '2 connected')", 120)
        browser.wait(f"{jobs}.some(one => one.innerText == '2 with 2 threads')", 30)
        browser.screenshot(tmp_path / "connected.png")
        assert browser.evaluate("document.querySelectorAll('.jp-OutputArea-output table').length") == 1
        run_next_cell(browser)
        browser.wait(f"{jobs}.some(one => one.innerText == 'closed')", 60)

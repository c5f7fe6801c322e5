"""A real JupyterLab on loopback, with a token and folders of its own."""

import contextlib
import importlib.util
import json
import os
import secrets
import subprocess
import sys
import time
import urllib.error
import urllib.request

from helpers.requirements import require


@contextlib.contextmanager
def lab(folder, base="/", **environment):
    """Serve a folder; give what makes the address of a page of it, the token included, and stop the server."""
    require(importlib.util.find_spec("jupyterlab"), "jupyterlab (extra `test`)")
    token = secrets.token_hex(16)
    own = {f"JUPYTER_{name}_DIR": str(folder / f".{name.lower()}") for name in ("CONFIG", "DATA", "RUNTIME")}
    with (folder / "lab.log").open("w") as log:
        process = subprocess.Popen(
            [
                sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1", "--port=0",
                f"--ServerApp.root_dir={folder}", f"--ServerApp.base_url={base}", f"--IdentityProvider.token={token}",
                "--LabApp.news_url=None", "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
            ],
            cwd=folder, stdout=log, stderr=log, env={**os.environ, **own, **environment},
        )  # fmt: skip
    try:
        root = _root(folder, process)
        yield lambda page: f"{root}{page}?token={token}"
        request = urllib.request.Request(f"{root}api/shutdown", method="POST")
        request.add_header("Authorization", f"token {token}")
        with urllib.request.urlopen(request, timeout=30):  # ends the kernels, too
            pass
        process.wait(30)
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()


def _root(folder, process):
    """Give the address that the server took, when it is up."""
    deadline = time.monotonic() + 120
    while True:
        for told in (folder / ".runtime").glob("jpserver-*.json"):
            with contextlib.suppress(ValueError):
                facts = json.loads(told.read_text())
                return f"http://127.0.0.1:{facts['port']}{facts['base_url']}"
        said = (folder / "lab.log").read_text()
        assert process.poll() is None, said
        assert time.monotonic() < deadline, said
        time.sleep(0.2)


def write_notebook(path, cells):
    """Write a notebook of cells of Python, which the kernel of this environment runs."""
    import nbformat

    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(notebook, path)


def card(browser):
    """Give what the card shows, by name; empty where there is none."""
    rows = browser.evaluate(
        "[...document.querySelectorAll('.jp-OutputArea-output table tr')]"
        ".map(row => [...row.cells].map(cell => cell.innerText))"
    )
    return dict(rows)


def open_notebook(browser, address, name):
    """Open a notebook, and wait for its kernel."""
    browser.open(address(f"lab/tree/{name}"))

    def idle():
        # the server answers 500 while a kernel begins
        with (
            contextlib.suppress(urllib.error.HTTPError),
            urllib.request.urlopen(address("api/kernels"), timeout=30) as reply,
        ):
            return [
                one for one in json.load(reply) if one["connections"] and one["execution_state"] == "idle"
            ]

    deadline = time.monotonic() + 120
    while not idle():
        assert time.monotonic() < deadline, "no kernel"
        time.sleep(0.2)
    browser.wait(f"{_INDICATOR} == 'idle'")


_INDICATOR = "document.querySelector('.jp-Notebook-ExecutionIndicator')?.dataset.status"
_PROMPTS = (
    "[...document.querySelectorAll('.jp-InputPrompt')].filter(one => one.innerText.match(/[0-9*]/)).length"
)


def run_next_cell(browser):
    """Click on the button that runs the selected cell and goes on to the next; return when it has begun."""
    begun = browser.evaluate(_PROMPTS)
    browser.click("[data-jp-item-name=run] jp-button")
    browser.wait(f"{_PROMPTS} == {begun + 1}", 20)

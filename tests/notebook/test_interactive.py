"""Sessions: the steps, coffea's Runner and a live card on a cluster, in Python and in a notebook."""

import importlib.util
import os
import runpy
import subprocess
import sys
from pathlib import Path

import awkward as ak
import dask
import numpy as np
import pytest
import uproot
from distributed import Client, LocalCluster
from helpers.requirements import require

import hepdask
from hepdask.analysis import topology
from hepdask.monitoring import dashboard_link

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"


def test_processor_of_the_docs_through_the_runner_of_a_session(client, sample_files):
    processor = runpy.run_path(str(EXAMPLES / "selection.py"), run_name="selection")["Selection"]()
    fileset = {
        name: {"files": {sample_files[name]: "Delphes"}, "metadata": {"label": name}}
        for name in ("ttbar", "qcd")
    }
    with hepdask.session(client=client) as here:
        out = here.runner(chunksize=40)(fileset, processor)
    assert client.status == "running", "a client that was given stays open"
    for name in fileset:
        plain = _plain(sample_files[name])
        selected = topology.select(plain)
        assert out["counts"][name] == {"read": len(plain), "selected": selected.sum()}
        met = ak.to_numpy(ak.flatten(plain.MissingET.MET))
        for step, values in (("read", met), ("selected", met[selected])):
            expected = np.histogram(values, 50, (0, 250))[0]
            assert out["histograms"]["met"][name, step, :].values().tolist() == expected.tolist()
        mt = out["histograms"]["mt"][name, "selected", :]
        assert mt.sum(flow=True) == selected.sum()


def _plain(path):
    with uproot.open(path) as file:
        branches = file["Delphes"].arrays(library="ak")
    return ak.zip(
        {
            collection: ak.zip({field: branches[f"{collection}.{field}"] for field in fields}, depth_limit=2)
            for collection, fields in topology.branches(hepdask.load_config(None).analysis).items()
        },
        depth_limit=1,
    )


def test_session_has_the_steps_and_shows_the_cluster_until_it_is_closed(make_config):
    settings = {"kind": "local", "workers": 1, "threads": 2, "dashboard_port": 0}
    with hepdask.session(settings) as here:
        prepared = here.prepare(make_config(cluster={"kind": "attached", "address": "tcp://127.0.0.1:1"}))
        assert prepared.tasks > 0, "on the session's cluster, whatever the configuration says"
        text, page = repr(here), here._repr_html_()
        assert "workers: 1 with 2 threads" in text
        assert f"href='{here.client.dashboard_link}'" in page
        assert here.warning == ""
        with hepdask.session(here.client.scheduler.address) as other:
            assert "workers: 1 with 2 threads" in repr(other)
        assert here.client.submit(abs, -1).result() == 1, "who attaches leaves the cluster up"
    assert here.client.status == "closed"
    assert "closed" in repr(here)
    here.close()


def test_failures_in_a_session_close_it():
    with (
        pytest.raises(ZeroDivisionError),
        hepdask.session({"kind": "local", "workers": 1, "dashboard_port": 0}) as here,
    ):
        raise ZeroDivisionError
    assert here.client.status == "closed"


def test_link_goes_through_the_proxy_of_a_hub_where_dask_does_not_say_otherwise(client, monkeypatch):
    direct = client.dashboard_link
    assert dashboard_link.dashboard_link(client) == direct
    monkeypatch.setenv("JUPYTERHUB_SERVICE_PREFIX", "/user/anna/")
    port = direct.rsplit(":", 1)[1].partition("/")[0]
    assert dashboard_link.dashboard_link(client) == f"/user/anna/proxy/{port}/status"
    with dask.config.set({"distributed.dashboard.link": "https://site.example/{port}"}):
        assert dashboard_link.dashboard_link(client) == f"https://site.example/{port}"


def test_other_packages_on_a_worker_are_named_once(tmp_path, caplog):
    """A worker whose path holds another `hist` first."""
    fake = tmp_path / "hist-0.1.dist-info"
    fake.mkdir()
    (fake / "METADATA").write_text("Metadata-Version: 2.1\nName: hist\nVersion: 0.1\n")
    path = os.pathsep.join([str(tmp_path), *sys.path[1:]])
    with (
        LocalCluster(n_workers=0, host="127.0.0.1", dashboard_address="127.0.0.1:0") as cluster,
        Client(cluster) as own,
    ):
        worker = subprocess.Popen(
            [sys.executable, "-m", "distributed.cli.dask_worker", cluster.scheduler_address, "--no-nanny",
             "--nthreads", "1", "--no-dashboard", "--local-directory", str(tmp_path)],
            env={**os.environ, "PYTHONPATH": path},
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            own.wait_for_workers(1, timeout=60)
            caplog.set_level("INFO", "hepdask")
            with hepdask.session(client=own) as here:
                assert "hist 2" in here.warning
                assert "0.1 there" in here.warning
                assert "awkward" not in here.warning
                assert here.warning in repr(here)
            assert caplog.text.count("0.1 there") == 1
        finally:
            worker.terminate()
            worker.wait(30)


def test_card_in_a_notebook_stays_up_to_date(client, tmp_path):
    """A kernel that attaches to the cluster; what a browser would show is in the outputs of the cells."""
    require(
        importlib.util.find_spec("nbclient") and importlib.util.find_spec("ipykernel"),
        "nbclient and ipykernel (extra `docs`)",
    )
    import nbformat
    from nbclient import NotebookClient

    cells = [
        f"import time, hepdask\nhere = hepdask.session({client.scheduler.address!r})\nhere",
        "future = here.client.submit(time.sleep, 8, pure=False)\ntime.sleep(6)",
        "future.cancel()\nhere.close()",
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    shown = []
    kernel = NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(tmp_path)}})
    with kernel.setup_kernel():
        for place, cell in enumerate(notebook.cells):
            kernel.execute_cell(cell, place)
            shows = [out.data for out in notebook.cells[0].outputs if out.output_type == "display_data"]
            cards = [data for data in shows if data["text/plain"].startswith("hepdask on")]
            assert len(cards) == 1, "the card is one, and updated in place"
            shown.append(cards[0])
    assert "0 running" in shown[0]["text/plain"]
    assert "1 running" in shown[1]["text/plain"]
    assert client.dashboard_link in shown[1]["text/html"]
    assert "closed" in shown[2]["text/plain"]

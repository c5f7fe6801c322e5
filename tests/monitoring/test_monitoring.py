"""Monitoring: the metrics that Prometheus scrapes, the panels that draw them, and performance reports."""

import contextlib
import json
import re
import shutil
import socket
import subprocess
import urllib.parse
import urllib.request
from pathlib import Path

import pytest
import yaml
from helpers.requirements import require
from helpers.waiting import until

import hepdask
from hepdask.input import read_bytes
from hepdask.monitoring import metrics, performance_report

MONITORING = Path(__file__).parents[2] / "docs" / "monitoring"


@pytest.fixture
def served(client):
    """Give the address of the metrics of the cluster."""
    pytest.importorskip("prometheus_client", reason="prometheus-client (extra `metrics`)")
    return metrics.require(client)


@pytest.fixture
def prometheus(served, tmp_path):
    """Run a Prometheus that scrapes the cluster, as the docs do; give a function that asks it."""
    program = shutil.which("prometheus")
    require(program, "prometheus is not installed (apt install prometheus)")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    document = yaml.safe_load((MONITORING / "prometheus.yml").read_text())
    document["global"]["scrape_interval"] = "1s"
    document["scrape_configs"][0]["static_configs"] = [{"targets": [urllib.parse.urlsplit(served).netloc]}]
    settings = tmp_path / "prometheus.yml"
    settings.write_text(yaml.safe_dump(document))
    words = [f"--config.file={settings}", f"--storage.tsdb.path={tmp_path / 'tsdb'}"]
    process = subprocess.Popen(
        [program, *words, f"--web.listen-address=127.0.0.1:{port}"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )

    def ask(expression):
        query = urllib.parse.urlencode({"query": expression})
        address = f"http://127.0.0.1:{port}/api/v1/query?{query}"
        with contextlib.suppress(OSError), urllib.request.urlopen(address, timeout=10) as reply:
            return json.load(reply)["data"]["result"]
        return []

    yield ask
    process.terminate()
    process.wait(30)


def read_from_disk(served):
    """Bytes that earlier tests have read: schedulers in one process share their counters."""
    with urllib.request.urlopen(served, timeout=10) as reply:
        found = re.search(
            r'^hepdask_read_bytes_total\{server="disk"\} (\S+)', reply.read().decode(), re.MULTILINE
        )
    return float(found[1]) if found else 0.0


def test_prometheus_sees_what_the_run_did_and_every_panel_has_data(
    client, served, prometheus, make_config, sample_files
):
    files = {f"{name}_watched": [path] for name, path in sample_files.items()}
    model = {"epochs": 2, "batch_size": 16}
    config = make_config(files, models={"hlf": model}, training={"models": ["hlf"]})
    client.run(read_bytes.take)  # what earlier tests have read and nobody told
    already = read_from_disk(served)
    prepared = hepdask.prepare(config, client)
    (trained,) = hepdask.train(config, client=client)
    last = trained.record.history[-1]

    def value(expression):
        found = prometheus(expression)
        return float(found[0]["value"][1]) if found else None

    loss = 'hepdask_training_loss{model="hlf", sample='
    until(lambda: value(loss + '"fit"}') == pytest.approx(last["loss"]), 60)
    assert value('hepdask_training_epoch{model="hlf"}') == 2
    for row in prepared.store.manifest["selection"]:
        events = f'hepdask_events_total{{dataset="{row["dataset"]}", outcome='
        assert value(events + '"selected"}') == row["events_selected"]
        assert value(events + '"rejected"}') == row["events_read"] - row["events_selected"]
    sizes = sum(Path(path).stat().st_size for path in sample_files.values())
    assert 0 < value('hepdask_read_bytes_total{server="disk"}') - already < 10 * sizes
    assert value(loss + '"validation"}') == pytest.approx(last["val_loss"])
    rate = 'hepdask_training_events_per_second{model="hlf", rank="0"}'
    assert value(rate) == pytest.approx(last["events_per_second"])

    with urllib.request.urlopen(served, timeout=10) as reply:
        names = set(re.findall(r"^([a-z_]+)[ {]", reply.read().decode(), re.MULTILINE))
    dashboard = json.loads((MONITORING / "grafana.json").read_text())
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            used = set(re.findall(r"\b(?:hepdask|dask)_[a-z_]+", target["expr"]))
            assert used, panel["title"]
            assert used <= names, panel["title"]
            until(lambda expr=target["expr"]: prometheus(expr), 30)


def test_documentation_names_every_metric():
    text = (MONITORING.parent / "monitoring.md").read_text()
    for name, metric in metrics.METRICS.items():
        assert f"`{name}{'_total' if metric.kind == 'counter' else ''}`" in text


def test_performance_report_begins_with_the_recording(client, tmp_path):
    client.submit(_forgotten, pure=False).result()
    recording = performance_report.Recording(client)
    client.submit(_remembered, pure=False).result()
    assert recording.save(tmp_path / "performance.html", "a run")
    page = (tmp_path / "performance.html").read_text()
    assert "_remembered" in page
    assert "_forgotten" not in page
    assert not re.search(r"<script[^>]* src=", page), "it needs no other file"


def _forgotten():
    return 1


def _remembered():
    return 2

"""The commands on a farm: check, script, start, submit and what belongs to it, and the plain submit files."""

import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path
from urllib.request import urlopen

import pytest
import yaml
from clusters.farms.daemons import PATIENCE, output
from clusters.farms.fixtures import ROOT, begun, counted, hepdask, jobs_of, slow_selection, write_document
from helpers.waiting import until

from hepdask import open_store

SECRET = "a-secret-that-must-not-be-seen"


@pytest.fixture
def document(make_config, make_settings, tmp_path):
    """Write a configuration and the settings of a cluster; give their paths."""
    return write_document(make_config, make_settings, tmp_path)


def start(*words, cwd=None):
    return subprocess.Popen(
        [sys.executable, "-m", "hepdask", *map(str, words)], cwd=cwd, stdout=subprocess.PIPE, text=True
    )


def test_check_passes_on_a_good_site(document, sample_files):
    _, cluster = document()
    done = hepdask("cluster", "check", cluster, "--read", sample_files["ttbar"], "--json")
    checks = {one["name"]: one for one in json.loads(done.stdout)}
    assert done.returncode == 0, (checks, done.stderr)
    assert all(one["passed"] for one in checks.values())
    assert {"shared file system", "clock", "Python and packages", "disk for spilling", "grid proxy"} < set(
        checks
    )


def test_check_says_what_to_fix(farm, document, tmp_path):
    _, cluster = document()
    settings = yaml.safe_load(cluster.read_text())
    cluster.write_text(yaml.safe_dump(settings | {"interface": "ib7"}))
    done = hepdask("cluster", "check", cluster)
    assert done.returncode == 1
    assert re.search(r"FAIL  interface ib7: here are: .*lo", done.stdout)
    assert "-> set interface to one that this machine and the nodes have" in done.stdout
    assert "a job starts" not in done.stdout, "nothing is submitted where it cannot work"
    cluster.write_text(yaml.safe_dump(settings))
    done = hepdask("cluster", "check", cluster, "--read", tmp_path / "gone.root")
    assert done.returncode == 1
    assert re.search(r"FAIL  .*gone.root from a worker: FileNotFoundError", done.stdout)


def test_script_is_what_the_batch_system_takes(farm, document, tmp_path):
    _, cluster = document()
    done = hepdask("cluster", "script", cluster)
    assert done.returncode == 0, done.stderr
    script = tmp_path / "job"
    script.write_text(done.stdout)
    if farm.kind == "slurm":
        assert subprocess.run(["sbatch", "--test-only", str(script)], capture_output=True).returncode == 0
    else:
        assert "dask_worker" in output("condor_submit", "-dry-run", "-", str(script))


def test_a_secret_is_refused_in_the_environment(document):
    _, cluster = document()
    settings = yaml.safe_load(cluster.read_text())
    cluster.write_text(yaml.safe_dump(settings | {"environment": {"BEARER_TOKEN": SECRET}}))
    done = hepdask("cluster", "script", cluster)
    assert done.returncode == 2
    assert "environment.BEARER_TOKEN looks like a secret" in done.stderr
    assert SECRET not in done.stdout + done.stderr


def dashboard_pages(link):
    """Give what the dashboard's pages on scheduler, workers, logs and counters say."""
    pages = ("info/main/workers.html", "info/main/logs.html", "json/identity.json", "metrics")
    root = link.removesuffix("status")
    return "".join(urlopen(root + page, timeout=60).read().decode() for page in pages)


def test_a_cluster_stays_up_for_those_with_its_connection_file(
    farm, document, tmp_path, expected, monkeypatch
):
    monkeypatch.setenv("SOME_PASSWORD", SECRET)
    config, cluster = document()
    connection = tmp_path / "farm.json"
    process = start("cluster", "start", cluster, "--connection", connection, "--json")
    try:
        facts = json.loads(process.stdout.readline())
        assert facts["address"].startswith("tls://127.0.0.1:")
        assert stat.S_IMODE(connection.stat().st_mode) == 0o600
        patient = json.loads(connection.read_text()) | {"start_timeout": 120}  # others use this machine, too
        connection.write_text(json.dumps(patient))
        done = hepdask("prepare", config, "--cluster", connection)
        assert done.returncode == 0, done.stderr
        assert len(open_store(tmp_path / "run/store.zarr")) == len(expected)
        other = f"output={tmp_path}/other"  # a store that is up to date needs no cluster
        monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "of-another-user"))
        done = hepdask("prepare", config, "--cluster", facts["address"], "--set", other)
        assert done.returncode == 1, "without the certificate nobody comes in"
        certificate = Path(json.loads(connection.read_text())["certificate"])
        assert stat.S_IMODE(certificate.stat().st_mode) == 0o600
        assert stat.S_IMODE(certificate.parent.stat().st_mode) == 0o700
        key = re.search(r"PRIVATE KEY-----\n(\w+)", certificate.read_text())[1]
        for path in certificate.parent.parent.iterdir():
            assert path == certificate.parent or key not in path.read_text(errors="replace")
        shown = dashboard_pages(facts["dashboard"]) + farm.shown()
        assert "127.0.0.1" in shown
        assert key not in shown
        assert SECRET not in shown
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)
    assert not connection.exists()
    assert not certificate.exists()


def test_submit_kill_the_driver_and_submit_again(farm, document, tmp_path, expected, monkeypatch):
    monkeypatch.setenv("SOME_PASSWORD", SECRET)
    config, cluster = document(
        input={"chunk_events": 10, "retry_wait": 0.01},
        analysis=slow_selection(tmp_path, 2),
        models={"hlf": {"epochs": 1, "batch_size": 16}},
        training={"models": ["hlf"], "ranks": 2},
    )
    words = (config, "--cluster", cluster)
    assert "nothing was submitted" in hepdask("status", *words).stderr
    first = json.loads(hepdask("submit", *words, "--json").stdout)
    again = hepdask("submit", *words)
    assert again.returncode == 1
    assert f"job {first['number']}" in again.stderr
    parts = tmp_path / "run/store.zarr/parts"
    log = Path(first["log"])
    until(lambda: len(list(parts.glob("[!.]*-*"))) > 2, 3 * PATIENCE, "the first parts")
    assert SECRET not in farm.shown()
    farm.kill_hard(first["number"])
    at = time.monotonic()
    until(
        lambda: json.loads(hepdask("status", *words, "--json").stdout)["state"] == "lost",
        60,
        "that it was killed",
    )
    noticed = time.monotonic() - at
    done_before = {path.name: path.stat().st_mtime_ns for path in parts.glob("[!.]*-*")}
    assert 0 < len(done_before) < 18

    second = json.loads(hepdask("submit", *words, "--json").stdout)
    assert second["number"] != first["number"]
    followed = hepdask("logs", "-f", *words)
    assert followed.returncode == 0, followed.stderr
    assert "report" in followed.stdout
    assert json.loads(hepdask("status", *words, "--json").stdout)["state"] == "finished", log.read_text()
    assert (tmp_path / "run/report.html").exists()
    arrays = open_store(tmp_path / "run/store.zarr").arrays()
    found = sorted(zip(arrays.dataset.tolist(), arrays.entry.tolist(), strict=True))
    assert found == expected
    kept = {name: (parts / name).stat().st_mtime_ns for name in done_before}
    assert kept == done_before, "what was done is not done again"
    redone = len(begun(parts.parent)) - 18
    row = {
        "farm": farm.kind,
        "fault": "driver killed",
        "noticed_s": noticed,
        "kept": len(kept),
        "redone": redone,
    }
    print(json.dumps(row | counted(found, expected)))
    written = [*(tmp_path / "run/submit").iterdir(), *Path(logs_of(cluster)).iterdir()]
    assert not [path for path in written if SECRET in path.read_text(errors="replace")]


def logs_of(cluster):
    return yaml.safe_load(cluster.read_text())["log_directory"]


def test_cancel_ends_driver_and_workers(farm, document, tmp_path):
    config, cluster = document(input={"chunk_events": 10}, analysis=slow_selection(tmp_path, 5))
    # they would not end by themselves for a long time
    cluster.write_text(yaml.safe_dump(yaml.safe_load(cluster.read_text()) | {"death_timeout": 600}))
    words, others = (config, "--cluster", cluster), jobs_of(farm)
    assert hepdask("submit", *words).returncode == 0
    log = tmp_path / "run/submit/driver.log"
    until(lambda: log.exists() and "2 connected" in log.read_text(), PATIENCE, "the workers")
    assert hepdask("cancel", *words).returncode == 0
    until(lambda: jobs_of(farm) <= others, PATIENCE, "the end of all its jobs")
    again = hepdask("cancel", *words)
    assert again.returncode == 1
    assert "is over already: lost" in again.stderr


def test_a_driver_that_waits_is_told_of(farm, document):
    config, cluster = document()
    wait = "--begin=now+1hour" if farm.kind == "slurm" else "requirements = False"
    settings = yaml.safe_load(cluster.read_text()) | {"driver": {"job_extra_directives": [wait]}}
    cluster.write_text(yaml.safe_dump(settings))
    words = (config, "--cluster", cluster)
    number = json.loads(hepdask("submit", *words, "--json").stdout)["number"]
    done = hepdask("logs", *words)
    assert done.returncode == 0, done.stderr
    assert re.search(rf"job {number}: pending.*; it has written nothing yet", done.stderr)
    assert done.stdout == ""
    assert hepdask("cancel", *words).returncode == 0
    until(lambda: not farm.exists(number), PATIENCE, "the end of the job")


def test_the_plain_submit_files_run_and_go_on_after_a_kill(farm, document, tmp_path, expected):
    config, _ = document(
        input={"chunk_events": 10},
        analysis=slow_selection(tmp_path, 2),
        models={"hlf": {"epochs": 1, "batch_size": 16}},
        training={"models": ["hlf"], "ranks": 1},
    )
    (tmp_path / ".venv").symlink_to(sys.prefix)
    shutil.copytree(ROOT / farm.kind, tmp_path / farm.kind)
    parts = tmp_path / "run/store.zarr/parts"

    def plain_submit():
        if farm.kind == "slurm":
            return re.search(r"\d+", output("sbatch", "slurm/run.sbatch", str(config), cwd=tmp_path))[0]
        # the user of the tests may have no home of his own
        home = f'environment = "HOME={os.environ["HOME"]} PYTHONPATH={os.environ["PYTHONPATH"]}"'
        answer = output(
            "condor_submit", "-append", home, "htcondor/run.sub", f"config={config}", cwd=tmp_path
        )
        return re.search(r"cluster (\d+)", answer)[1]

    first = plain_submit()
    until(lambda: len(list(parts.glob("[!.]*-*"))) > 2, 3 * PATIENCE, "the first parts")
    farm.kill(first)
    until(lambda: not farm.exists(first), PATIENCE, "the end of the job")
    before = {path.name: path.stat().st_mtime_ns for path in parts.glob("[!.]*-*")}
    assert 0 < len(before) < 18
    second = plain_submit()
    until(lambda: not farm.exists(second), 900, "the end of the job")
    said = "".join(path.read_text() for path in tmp_path.glob("hepdask-*"))
    assert (tmp_path / "run/report.html").exists(), said
    arrays = open_store(tmp_path / "run/store.zarr").arrays()
    assert sorted(zip(arrays.dataset.tolist(), arrays.entry.tolist(), strict=True)) == expected
    assert {name: (parts / name).stat().st_mtime_ns for name in before} == before

"""Preparing and training on a farm; a job that is killed, and one that is rejected. All tests run these."""

import json
import time
from pathlib import Path

import pytest
import yaml
from clusters.farms.daemons import PATIENCE, Listeners
from clusters.farms.fixtures import (
    connected_job,
    hepdask,
    is_back,
    measured,
    prepare_disturbed,
    write_document,
)
from helpers.requirements import has_horovod, require
from helpers.waiting import until

from hepdask import clusters, open_store
from hepdask.errors import ClusterError


@pytest.fixture
def document(make_config, make_settings, tmp_path):
    """Write a configuration and the settings of a cluster; give their paths."""
    return write_document(make_config, make_settings, tmp_path)


def test_prepare_and_train_on_two_ranks_with_nothing_beyond_loopback(farm, document, tmp_path, expected):
    require(has_horovod(), "Horovod is not built (make horovod)")
    config, cluster = document(models={"hlf": {"epochs": 2, "batch_size": 16}})
    jobs = Path(yaml.safe_load(cluster.read_text())["log_directory"])
    jobs.chmod(0o755)  # a folder of the user's that others may enter
    with Listeners(farm.folder) as listeners:
        done = hepdask("prepare", config, "--cluster", cluster)
        assert done.returncode == 0, done.stderr
        arrays = open_store(tmp_path / "run/store.zarr").arrays()
        assert sorted(zip(arrays.dataset.tolist(), arrays.entry.tolist(), strict=True)) == expected
        done = hepdask("train", config, "--cluster", cluster, "--model", "hlf", "--set", "training.ranks=2")
        assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "run/models/hlf/training.json").read_text())
    assert record["facts"]["ranks"] == 2
    assert len(record["history"]) == 2
    assert {(address, what) for address, what in listeners.found if address != "127.0.0.1"} == set()
    logs = [path for path in jobs.rglob("*") if path.is_file()]
    assert {path.suffix for path in logs} >= {".out", ".err"}
    assert [path for path in logs if path.parent.stat().st_mode & 0o077] == [], (
        "others can read what jobs say"
    )
    assert (tmp_path / "run/store.zarr").stat().st_mode & 0o077, "and what is made, as the user wants it"
    everybody = " ".join(what for _, what in listeners.found)
    daemons = ("slurmctld", "slurmd") if farm.kind == "slurm" else ("condor_shared_port", "condor_schedd")
    for one in (
        *daemons,
        "hepdask prepare",
        "hepdask train",
        "dask_worker",
        "spawn_main",
    ):
        assert one in everybody, f"{one} was not looked at"


def test_a_reservation_keeps_workers_for_the_ranks(farm_client, monitor):
    with clusters.reserved(farm_client, ranks=3, cores_per_rank=1):
        assert len(farm_client.nthreads()) == 3
    with pytest.raises(ClusterError, match="a rank takes 2 cores and a worker has 1"):  # noqa: SIM117
        with clusters.reserved(farm_client, ranks=1, cores_per_rank=2):
            pass


def test_a_running_job_is_killed(farm, farm_client, monitor, slow_config, expected):
    job = connected_job(monitor)
    found, at = prepare_disturbed(slow_config, farm_client, lambda: farm.kill(job))
    assert found == expected
    until(lambda: is_back(monitor), PATIENCE, f"two workers; {monitor.summary()}")
    measured(farm, "kill", monitor, at, slow_config, found, expected)
    assert (job, "lost") in [(change.number, change.state.value) for change in monitor.history]
    until(lambda: not farm.exists(job), PATIENCE, "the job is gone")


def test_a_rejected_job_is_an_error_with_the_answer(farm, make_settings):
    wrong = (
        ({"queue": "nowhere"}, "Invalid partition name specified")
        if farm.kind == "slurm"
        else ({"job_extra_directives": {"universe": "nowhere"}}, "I don't know about the 'nowhere' universe")
    )
    begin = time.monotonic()
    with pytest.raises(ClusterError, match=f"(?s)rejected the job, 3 times in a row: .*{wrong[1]}"):  # noqa: SIM117
        with clusters.connect(make_settings(**wrong[0])):
            pass
    print(json.dumps({"farm": farm.kind, "fault": "rejected", "noticed_s": time.monotonic() - begin}))

"""Clusters that ask for GPUs: their settings, what they say where there are none, and what `cluster check` finds."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import uuid
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from distributed import Client, LocalCluster

from hepdask.clusters import GPU, HTCondor, Slurm, connect, load_cluster, reserved
from hepdask.clusters.batch_cluster import job_script
from hepdask.clusters.local_gpu import needs
from hepdask.clusters.preflight import _gpus
from hepdask.errors import ClusterError, ConfigError, MissingDependency

ROOT = Path(__file__).parents[2]
ONE, TWO = (f"GPU-{uuid.uuid4()}" for _ in range(2))


def nvidia_smi(folder, *uuids):
    """Write a driver's program that knows these GPUs; give a PATH on which it comes first."""
    folder.mkdir(exist_ok=True)
    lines = "".join(f"echo 'GPU {number}: NVIDIA T4 (UUID: {one})'\n" for number, one in enumerate(uuids))
    (folder / "nvidia-smi").write_text(f"#!/bin/sh\n{lines}")
    (folder / "nvidia-smi").chmod(0o755)
    return f"{folder}:{os.environ['PATH']}"


def no_driver(monkeypatch, tmp_path):
    """Take what may be installed here away: a program in its place says that it found no driver."""
    path = nvidia_smi(tmp_path / "bin")
    (tmp_path / "bin/nvidia-smi").write_text("#!/bin/sh\necho no devices were found\nexit 6\n")
    monkeypatch.setenv("PATH", path)


def test_shipped_values_are_the_defaults_and_every_key_is_there():
    path = ROOT / "configs/clusters/gpu.yaml"
    assert load_cluster("gpu") == load_cluster(str(path)) == GPU()
    assert [key for key in GPU.model_fields if f"{key}:" not in path.read_text()] == []
    shown = path.read_text().replace("# ", "", 1)  # a first line of prose
    examples = [
        line.removeprefix("# ") for line in shown.splitlines()[1:] if line.startswith("# ") and ": " in line
    ]
    settings = yaml.safe_load("\n".join(examples)) | {"kind": "gpu", "protocol": "ucx", "tls": False}
    assert load_cluster(settings).rmm_pool_size == 0.3


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"kind": "gpu", "rmm_pool_size": 8.5}, "rmm_pool_size: 8.5 is not a fraction of a GPU's memory; write 0.8"),
        ({"kind": "gpu", "device_memory_limit": "much"}, "device_memory_limit: "),
        ({"kind": "gpu", "rmm-pool-size": "8GB"}, "rmm-pool-size: unknown key; did you mean rmm_pool_size?"),
        ({"kind": "gpu", "enable_nvlink": True}, "enable_nvlink and enable_infiniband need protocol: ucx"),
        ({"kind": "gpu", "protocol": "mpi"}, "protocol: "),
        ({"kind": "gpu", "protocol": "ucx"}, "protocol: ucx cannot be encrypted; use tcp, or set tls: false"),
        ({"kind": "gpu", "workers": 2}, "workers: unknown key"),
        ({"kind": "slurm", "cores": 2, "processes": 2, "gpus": 1}, "gpus: 2 worker processes cannot have the same"),
        ({"kind": "slurm", "gpus": 1, "worker_extra_args": ["--resources", "GPU=1"]}, "--resources is already set"),
    ],
)  # fmt: skip
def test_wrong_settings_are_refused(settings, expected):
    with pytest.raises(ConfigError) as refused:
        load_cluster(settings)
    assert expected in str(refused.value)


def test_jobs_ask_for_gpus_and_their_workers_offer_them():
    script = job_script(Slurm(cores=4, processes=2, gpus=2))
    assert "#SBATCH --gres=gpu:2\n" in script
    assert "--resources GPU=1" in script
    own = job_script(Slurm.model_validate({"gpus": 1, "job_extra_directives": ["--gpus-per-task=a100:1"]}))
    assert "#SBATCH --gpus-per-task=a100:1\n" in own
    assert "--gres" not in own
    script = job_script(HTCondor(gpus=1))
    assert "request_gpus = 1\n" in script
    assert "--resources GPU=1" in script
    for plain in (Slurm(), HTCondor()):
        assert not [word for word in ("--gres", "request_gpus", "--resources") if word in job_script(plain)]


def test_without_driver_the_error_says_what_is_missing(tmp_path, monkeypatch):
    no_driver(monkeypatch, tmp_path)
    with pytest.raises(ClusterError) as refused, connect("gpu"):
        pass
    said = str(refused.value)
    assert "no NVIDIA driver: nvidia-smi fails with status 6: no devices were found" in said
    assert "--cluster local" in said
    if importlib.util.find_spec("dask_cuda") is None:
        assert "dask-cuda is not installed, and kind: gpu needs it (pip install 'hepdask[gpu]')" in said


def test_gpus_that_are_hidden_and_packages_that_are_missing(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", nvidia_smi(tmp_path / "bin", ONE, TWO))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    driver, *_ = needs(GPU())
    assert driver.found == "the driver has 2 GPU(s), and CUDA_VISIBLE_DEVICES is '': 0 can be used"
    assert driver.fix.startswith("set CUDA_VISIBLE_DEVICES to GPUs that nvidia-smi -L lists")
    driver, *_ = needs(load_cluster({"kind": "gpu", "cuda_visible_devices": ["1", "2"]}))
    assert "cuda_visible_devices is '1,2': 1 can be used" in driver.found
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    wanted = load_cluster({"kind": "gpu", "rmm_pool_size": "1GB", "protocol": "ucx", "tls": False})
    driver, *packages = needs(wanted)
    assert not driver.fix
    assert driver.found == "2 of 2 GPU(s) can be used: 0, 1"
    assert [need.name for need in packages] == ["dask-cuda", "rmm", "distributed-ucxx"]
    if importlib.util.find_spec("distributed_ucxx"):
        pytest.skip("distributed-ucxx is installed here")
    with pytest.raises(
        MissingDependency, match=r"distributed-ucxx is not installed, and protocol: ucx needs it \(pip"
    ):
        connect(wanted.model_dump(exclude_none=True)).__enter__()


def test_check_of_this_machine_says_what_is_missing(tmp_path, monkeypatch):
    no_driver(monkeypatch, tmp_path)
    done = subprocess.run(
        [sys.executable, "-m", "hepdask", "cluster", "check", "gpu"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1, done.stderr
    assert "FAIL  NVIDIA driver and GPUs: no NVIDIA driver: nvidia-smi fails with status 6" in done.stdout
    assert "      -> run it on a machine with an NVIDIA GPU and its driver" in done.stdout
    assert "starts" not in done.stdout, "nothing is started where it cannot work"


def test_workers_and_a_rank_are_looked_at(tmp_path, monkeypatch):
    """A driver that is a script, and the TensorFlow and Horovod that are installed here."""
    monkeypatch.setenv("PATH", nvidia_smi(tmp_path / "bin", ONE, TWO))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    options = {"host": "127.0.0.1", "dashboard_address": "127.0.0.1:0", "silence_logs": 40}
    with (
        LocalCluster(n_workers=1, threads_per_worker=1, resources={"GPU": 1}, **options) as cluster,
        Client(cluster) as client,
    ):
        found = {one.name: one for one in _gpus(client, 1)}
        _, promised = islice(_gpus(client, 2), 2)
    assert list(found) == [
        "NVIDIA driver",
        "visible devices",
        "CUDA in TensorFlow",
        "cuDNN",
        "NCCL in Horovod",
    ]
    assert found["NVIDIA driver"].passed
    assert found["visible devices"].passed
    assert found["visible devices"].found.endswith("sees 1: 1 GPU(s) for 1")
    assert not promised.passed
    assert promised.found.endswith("sees 1: 1 GPU(s) for 2")
    if "is the one for CPUs" not in found["CUDA in TensorFlow"].found:
        pytest.skip("TensorFlow is the one for GPUs: tests/test_gpu.py looks at that")
    for name in ("CUDA in TensorFlow", "cuDNN", "NCCL in Horovod"):
        assert not found[name].passed
        assert found[name].fix


def test_ranks_that_need_more_gpus_than_a_worker_has_are_refused():
    farm = SimpleNamespace(
        settings=Slurm(cores=2, gpus=1)
    )  # what `reserved` looks at, before it asks for jobs
    with pytest.raises(ClusterError, match=r"takes 2 GPU\(s\) and a worker has 1: raise `gpus`"):
        reserved(SimpleNamespace(cluster=farm), 2, 1, 2).__enter__()

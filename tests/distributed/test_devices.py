"""GPUs as batch systems and drivers name them, and as ranks take them; no GPU is needed, the driver is a script."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import uuid
from contextlib import ExitStack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hepdask.distributed.gpu_claims import NoDriver, host_devices, taken, visible
from hepdask.distributed.placement import Offer, place

FIRST, SECOND, INSTANCE, OTHER = (f"{kind}-{uuid.uuid4()}" for kind in ("GPU", "GPU", "MIG", "MIG"))
HOST = [[FIRST, INSTANCE, OTHER], [SECOND]]
LISTED = f"""\
GPU 0: NVIDIA A100-SXM4-40GB (UUID: {FIRST})
  MIG 3g.20gb     Device  0: (UUID: {INSTANCE})
  MIG 3g.20gb     Device  1: (UUID: {OTHER})
GPU 1: NVIDIA H100 80GB HBM3 (UUID: {SECOND})
"""


@pytest.fixture
def driver(tmp_path, monkeypatch):
    """Let nvidia-smi be a script that says what a test wants."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def says(text, status=0, folder="bin"):
        script = tmp_path / folder / "nvidia-smi"
        script.parent.mkdir(exist_ok=True)
        script.write_text(f"#!/bin/sh\ncat <<'.'\n{text}.\nexit {status}\n")
        script.chmod(0o755)
        monkeypatch.setenv("PATH", f"{script.parent}:{os.environ['PATH']}")

    return says


def listing(*uuids):
    return "".join(f"GPU {number}: NVIDIA T4 (UUID: {one})\n" for number, one in enumerate(uuids))


def test_the_driver_is_asked(driver, monkeypatch):
    driver(LISTED)
    assert host_devices() == HOST
    driver("NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.\n", 9)
    with pytest.raises(NoDriver, match="status 9: NVIDIA-SMI has failed because it couldn't communicate"):
        host_devices()
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(NoDriver, match="is not found"):
        host_devices()


@pytest.mark.parametrize(
    ("named", "names", "identities"),
    [
        (None, ["0", "1"], [FIRST, SECOND]),
        ("1", ["1"], [SECOND]),
        ("1, 0", ["1", "0"], [SECOND, FIRST]),  # as dask-cuda turns them round
        (SECOND, [SECOND], [SECOND]),
        (SECOND[:12], [SECOND[:12]], [SECOND]),  # as HTCondor shortens them
        (f"{INSTANCE},{OTHER}", [INSTANCE, OTHER], [INSTANCE, OTHER]),
        (f"MIG-{FIRST}/1/0", [f"MIG-{FIRST}/1/0"], [f"MIG-{FIRST}/1/0"]),  # as drivers before 470 call them
        ("", [], []),
        ("NoDevFiles", [], []),  # Slurm, where a job asked for none
        ("10000", [], []),  # HTCondor, where a job asked for none
        ("0,-1,1", ["0"], [FIRST]),  # CUDA stops there
        ("0,GPU-ffffffff-0", ["0"], [FIRST]),
    ],
    ids=[
        "not set", "one", "turned round", "uuid", "short uuid", "mig", "old mig", "none", "slurm none", "condor none",
        "stops", "unknown",
    ],  # UUIDs are other ones in each process of pytest-xdist
)  # fmt: skip
def test_what_a_job_sees(named, names, identities):
    found = visible(HOST, {} if named is None else {"CUDA_VISIBLE_DEVICES": named})
    assert list(found) == names
    assert list(found.values()) == identities


def test_without_a_driver_numbers_are_those_of_the_job():
    one, two = (visible([], {"CUDA_VISIBLE_DEVICES": "0", "SLURM_JOB_ID": job}) for job in "12")
    assert list(one) == list(two) == ["0"]
    assert one["0"] != two["0"]


def elsewhere(stack, count, environment):
    """Take GPUs in another process until the stack is closed, and give their names."""
    code = "from hepdask.distributed.gpu_claims import taken\nwith taken({}) as mine: print(*mine, flush=True); input()"
    process = stack.enter_context(
        subprocess.Popen(
            [sys.executable, "-c", code.format(count)], env=environment, text=True, stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
    )  # fmt: skip
    stack.callback(process.kill)
    return process.stdout.readline().split() or process.stderr.read()


def test_workers_that_see_the_same_gpus_get_different_ones(driver):
    driver(LISTED)
    with taken(1) as mine, ExitStack() as others:
        assert mine == ["0"]
        assert elsewhere(others, 1, dict(os.environ)) == ["1"]
        with pytest.raises(
            ValueError, match=r"takes 1 GPU\(s\), and of those that its worker sees \(0, 1\) 0 are"
        ):
            taken(1).__enter__()
    with taken(2) as mine:  # also after a process that was killed
        assert mine == ["0", "1"]


def test_jobs_that_each_see_one_gpu_called_0_get_theirs(driver):
    with ExitStack() as others:
        driver(listing(FIRST), folder="one")
        assert elsewhere(others, 1, os.environ | {"CUDA_VISIBLE_DEVICES": "0"}) == ["0"]
        driver(listing(SECOND), folder="two")
        with taken(1) as mine:
            assert mine == ["0"]


def test_ranks_of_one_worker_share_what_it_sees(driver, monkeypatch):
    driver(listing(*(f"GPU-{uuid.uuid4()}" for _ in range(4))))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3,0,1")
    with taken(2, turn=1) as later, taken(2, turn=0) as first:
        assert (first, later) == (["2", "3"], ["0", "1"])
    with taken(0) as none, taken(None) as as_it_is:
        assert none == []
        assert as_it_is is None


def test_a_gpu_that_comes_free_in_time_is_taken(driver):
    driver(f"GPU 0: NVIDIA H100 (UUID: GPU-{uuid.uuid4()})\n")
    with ExitStack() as other:
        other.enter_context(taken(1))
        threading.Timer(0.5, other.close).start()
        with taken(1, wait=60) as mine:
            assert mine == ["0"]


def test_a_worker_without_driver_believes_its_resource(driver, monkeypatch):
    driver("", 9)
    monkeypatch.setenv("SLURM_JOB_ID", uuid.uuid4().hex)
    with taken(2, turn=1) as mine:
        assert mine == ["2", "3"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    with pytest.raises(ValueError, match=r"sees \(0 \(nvidia-smi fails with status 9: .*\)\) 1 are free"):
        taken(2).__enter__()


@given(
    st.lists(st.tuples(st.integers(0, 6), st.integers(0, 4)), max_size=5),
    st.integers(1, 6),
    st.none() | st.integers(0, 3),
)
def test_no_more_gpus_are_promised_than_there_are(workers, ranks, gpus_per_rank):
    offers = [
        Offer(f"w{i}", f"i{i}", f"h{i % 2}", threads, gpus) for i, (threads, gpus) in enumerate(workers)
    ]
    slots = place(offers, ranks, 1, gpus_per_rank)
    if slots is None:
        assert sum(offer.slots(1, gpus_per_rank) for offer in offers) < ranks
        return
    assert len(slots) == ranks
    for offer in offers:
        mine = [slot.gpus for slot in slots if slot.address == offer.address]
        assert len(mine) <= offer.threads
        assert sum(gpus or 0 for gpus in mine) <= offer.gpus
        if gpus_per_rank is None:
            assert set(mine) <= ({1} if offer.gpus else {None})
        else:
            assert set(mine) <= {gpus_per_rank}

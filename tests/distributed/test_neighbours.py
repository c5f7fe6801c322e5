"""Sums among ranks of one host that do not go through Horovod's ring."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import sys
import threading

import cloudpickle
import numpy as np
import pytest
from distributed import Client, LocalCluster
from helpers.ranks import BOUND, Clock, held, marked, pids
from helpers.waiting import until

from hepdask.distributed import RankFailed, RankOptions, local_allreduce, run

cloudpickle.register_pickle_by_value(sys.modules[__name__])

SHAPES = (
    (),
    (0,),
    (1,),
    (12_500,),
    (7, 11),
    (local_allreduce.MOST_BYTES // 4,),
    (local_allreduce.MOST_BYTES // 4 + 1,),
)


@pytest.fixture(scope="module")
def client():
    with (
        LocalCluster(n_workers=3, threads_per_worker=1, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        yield client


def sums():
    """Sum and average arrays of many shapes, the last one too large; and say which way they went."""
    from hepdask.distributed import collective

    found = {}
    for dtype in ("float32", "float64", "int64"):
        for shape in SHAPES:
            mine = (np.random.default_rng(collective.rank()).normal(size=shape) * 1000).astype(dtype)
            kept = mine.copy()
            found[dtype, shape] = np.asarray(collective.allreduce(mine, "sum", f"{dtype}.{shape}"))
            assert (mine == kept).all()
    backwards = np.arange(10.0)[::-1] + collective.rank()
    found["average"] = np.asarray(collective.allreduce(backwards, "average"))
    return found, collective._neighbours.cache_info().currsize


def test_sums_are_those_of_numpy(client):
    results = run(sums, client=client, ranks=3)
    for dtype in ("float32", "float64", "int64"):
        for shape in SHAPES:
            parts = [(np.random.default_rng(r).normal(size=shape) * 1000).astype(dtype) for r in range(3)]
            for found, _ in results:
                one = found[dtype, shape]
                assert (one.dtype, one.shape) == (dtype, shape)
                np.testing.assert_allclose(one, parts[0] + parts[1] + parts[2], rtol=1e-6, atol=1e-3)
                assert one.tobytes() == results[0][0][dtype, shape].tobytes()
    for found, used in results:
        assert used == 1
        assert (found["average"] == np.arange(10.0)[::-1] + 1).all()


def cycle_time():
    return os.environ.get("HOROVOD_CYCLE_TIME")


@pytest.mark.parametrize(
    ("more", "found"),
    [
        ({}, None),
        ({"HEPDASK_CYCLE_TIME_ON_ONE_HOST": "20"}, "20"),
        ({"HEPDASK_CYCLE_TIME_ON_ONE_HOST": "20", "HOROVOD_CYCLE_TIME": "3"}, "3"),
        ({"HEPDASK_CYCLE_TIME_ON_ONE_HOST": "20", "CUDA_VISIBLE_DEVICES": "0"}, None),
    ],
)
def test_horovod_looks_for_work_as_often_as_wanted(client, stub, more, found):
    assert run(cycle_time, client=client, ranks=2, options=RankOptions(env=stub | more)) == [found, found]


def endless(folder):
    import time

    from hepdask.distributed import collective

    collective.allreduce(np.zeros(1), "sum")
    (folder / str(collective.rank())).write_text(str(os.getpid()))
    while True:
        collective.allreduce(np.zeros(100), "sum")
        time.sleep(0.01)


@pytest.mark.parametrize(("number", "how"), [(0, signal.SIGKILL), (1, signal.SIGSTOP)])
def test_a_rank_that_goes_is_blamed(client, tmp_path, number, how):
    mark = secrets.token_hex(8)
    env = {"TEST_MARK": mark, "HOROVOD_GLOO_TIMEOUT_SECONDS": "3"}
    clock = Clock(lambda: run(endless, tmp_path, client=client, ranks=2, options=RankOptions(env=env)))
    os.kill(pids(tmp_path, 2)[number], how)
    clock.thread.join(60)
    assert isinstance(clock.error, RankFailed)
    assert clock.error.rank == number
    assert not marked(mark)
    until(lambda: held(client) == (0, 0, 0), BOUND)


def test_only_those_who_know_the_secret_come_in():
    secret = secrets.token_bytes(local_allreduce._SECRET_BYTES)
    name = f"\0hepdask-test-{secrets.token_hex(8)}"
    found = []
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(name)
        listener.listen(8)
        accepting = threading.Thread(
            target=lambda: found.extend(local_allreduce._accept(listener, 3, secret))
        )
        accepting.start()
        strangers = [socket.socket(socket.AF_UNIX) for _ in range(4)]
        greetings = (bytes(16) + b"\0\0\0\1", secret + b"\0\0\0\0", secret + b"\0\0\0\3", b"")
        for stranger, greeting in zip(strangers, greetings, strict=True):
            stranger.connect(name)
            stranger.sendall(greeting)
            stranger.shutdown(socket.SHUT_WR)
        ranks = [local_allreduce._connect(rank, name, secret) for rank in (2, 1)]
        accepting.join(20)
        assert len(found) == 2
        for rank, mine in ((2, ranks[0]), (1, ranks[1])):
            mine.sendall(b"x" * rank)
            assert found[rank - 1].recv(8) == b"x" * rank
        for stranger in strangers:
            stranger.settimeout(5)
            assert stranger.recv(1) == b""
        for one in (*strangers, *ranks, *found):
            one.close()

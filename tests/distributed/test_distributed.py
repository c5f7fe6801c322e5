"""Ranks on Dask workers: placement, rendezvous, results, and above all what happens when something dies.

Loading TensorFlow costs a rank ten CPU seconds, so tests of the launcher itself run with a stand-in for
``horovod.tensorflow`` that only has its entry points; tests named ``test_horovod_…`` use the real one.
"""

from __future__ import annotations

import ctypes
import http.client
import logging
import os
import pickle
import resource
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
import uuid
from collections import Counter
from concurrent.futures import CancelledError, ThreadPoolExecutor
from pathlib import Path

import cloudpickle
import numpy as np
import psutil
import pytest
from distributed import Client, Future, LocalCluster
from helpers.ranks import BOUND, Clock, held, marked, pids, rank, worker_of
from helpers.waiting import until
from hypothesis import given
from hypothesis import strategies as st

from hepdask.distributed import (
    HorovodMissing,
    NotEnoughSlots,
    NotSynchronised,
    RankFailed,
    RankOptions,
    run,
    submit,
)
from hepdask.distributed.placement import Offer, place
from hepdask.distributed.rank_task import Job, rank_environment
from hepdask.distributed.rendezvous import Rendezvous

# What the ranks run travels by value: they need not import this module and all it imports.
cloudpickle.register_pickle_by_value(sys.modules[__name__])


# Fixtures


@pytest.fixture(scope="module")
def cluster():
    with LocalCluster(
        n_workers=2, threads_per_worker=2, dashboard_address=None, silence_logs=logging.CRITICAL
    ) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def client(cluster):
    with Client(cluster) as client:
        yield client


# Functions of the ranks


def where():
    return {name: value for name, value in os.environ.items() if name.startswith(("HOROVOD", "OMP"))} | {
        "pid": os.getpid(),
        "parent": psutil.Process().parent().ppid(),
    }


def sleep_for_ever(ready):
    (ready / str(rank())).write_text(str(os.getpid()))
    time.sleep(600)


def hold_the_interpreter(ready):
    (ready / str(rank())).write_text(str(os.getpid()))
    ctypes.PyDLL(None).sleep(600)


def reduce_for_ever(ready):
    import horovod.tensorflow as hvd

    print("sum", hvd.allreduce(np.float64(hvd.rank() + 1), op=hvd.Sum).numpy())
    step = 0
    while True:
        hvd.allreduce(np.ones(1000, "f4"), name="step")
        step += 1
        if step == 20:
            print("step 20")
            (ready / str(hvd.rank())).write_text(str(os.getpid()))


# Placement


@given(
    st.lists(
        st.tuples(st.sampled_from("abcd"), st.integers(0, 5)),
        max_size=8,
    ),
    st.integers(1, 12),
    st.integers(1, 3),
)
def test_placement(workers, ranks, cores):
    offers = [Offer(f"w{i}", f"id{i}", host, threads) for i, (host, threads) in enumerate(workers)]
    slots = place(offers, ranks, cores)
    room = {offer.address: offer.threads // cores for offer in offers}
    if sum(room.values()) < ranks:
        assert slots is None
        return
    assert [slot.rank for slot in slots] == list(range(ranks))
    used = Counter(slot.address for slot in slots)
    assert all(used[address] <= room[address] for address in used)
    hosts = [slot.host for slot in slots]
    order = list(dict.fromkeys(hosts))
    assert hosts == [host for host in order for _ in range(hosts.count(host))]  # host by host
    by_host = Counter()
    for offer in offers:
        by_host[offer.host] += room[offer.address]
    fewest = next(n for n in range(1, 5) if sum(c for _, c in by_host.most_common(n)) >= ranks)
    assert len(order) == fewest


@given(st.lists(st.integers(1, 5), min_size=1, max_size=5), st.data())
def test_placement_is_horovods(room, data):
    hosts = pytest.importorskip("horovod.runner.common.util.hosts")
    ranks = data.draw(st.integers(1, sum(room)))
    room = sorted(room, reverse=True)
    offers = [Offer(f"w{i}", f"id{i}", f"h{i}", threads) for i, threads in enumerate(room)]
    theirs = hosts.get_host_assignments(
        [hosts.HostInfo(f"h{i}", threads) for i, threads in enumerate(room)], ranks, ranks
    )
    for mine, slot in zip(place(offers, ranks), theirs, strict=True):
        for name in ("rank", "size", "local_rank", "local_size", "cross_rank", "cross_size"):
            assert getattr(mine, name) == getattr(slot, name)
        assert mine.host == slot.hostname


def test_environment_order():
    slot = place([Offer("w", "i", "10.0.0.7", 4)], 1)[0]
    inherited = {"HOROVOD_RANK": "9", "HOROVOD_FUSION_THRESHOLD": "0", "OMP_NUM_THREADS": "1", "HOME": "/h"}
    given = {"OMP_WAIT_POLICY": "active", "HOROVOD_SIZE": "7"}
    job = Job("t", None, 1.0, RankOptions(cores_per_rank=2, env=given))
    env = rank_environment(inherited, slot, job, "eth0")
    assert env["HOROVOD_RANK"] == "0"
    assert env["HOROVOD_SIZE"] == "1"
    assert env["HOROVOD_HOSTNAME"] == "10.0.0.7"
    assert env["HOROVOD_GLOO_IFACE"] == "eth0"
    assert "HOROVOD_FUSION_THRESHOLD" not in env
    assert env["OMP_NUM_THREADS"] == env["TF_NUM_INTRAOP_THREADS"] == "2"
    assert env["OMP_WAIT_POLICY"] == "active"
    assert env["HOME"] == "/h"


# Rendezvous


def ask(server, method, path, body=b""):
    connection = http.client.HTTPConnection(server.address.host, server.address.port, timeout=10)
    connection.request(method, path, body=body)
    answer = connection.getresponse()
    return answer.status, answer.read()


def test_rendezvous_protocol():
    server = Rendezvous("127.0.0.1")
    try:
        base = f"/{server.address.environment()['HOROVOD_GLOO_RENDEZVOUS_ADDR'].split('/')[1]}"
        base += f":{server.address.port}"
        assert ask(server, "GET", f"{base}/global/0")[0] == 404
        assert ask(server, "PUT", f"{base}/global/0", b"\0value")[0] == 200
        assert ask(server, "GET", f"{base}/global/0") == (200, b"\0value")
        assert ask(server, "GET", f"{base}/local_a/0")[0] == 404
        assert ask(server, "DELETE", f"{base}/global/0")[0] == 200
        assert ask(server, "PUT", f"{base}/global/1", b"x" * (16 << 20))[0] == 413
        with ThreadPoolExecutor(1) as pool:  # a GET waits for the value
            coming = pool.submit(ask, server, "GET", f"{base}/global/2")
            time.sleep(0.1)
            ask(server, "PUT", f"{base}/global/2", b"late")
            assert coming.result() == (200, b"late")
    finally:
        server.close()
        server.close()


@pytest.mark.parametrize("path", ["/global/0", "/wrong:1/global/0", "/", "/a/b/c/d", "/%C3%A9/b/c"])
@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
def test_rendezvous_wants_the_secret(method, path):
    server = Rendezvous("127.0.0.1")
    try:
        assert ask(server, method, path, b"x")[0] == 403
        assert server.store == {}
    finally:
        server.close()


def test_rendezvous_ports():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match=f"no free port .* {port}–{port}"):
            Rendezvous("127.0.0.1", (port, port))
    for _ in range(3):
        server = Rendezvous("127.0.0.1", (port, port))
        assert server.address.port == port
        server.close()


# Runs that succeed


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_order_and_environment(client, stub, mark, ranks):
    found = run(where, client=client, ranks=ranks, options=RankOptions(env=stub | mark))
    assert [int(f["HOROVOD_RANK"]) for f in found] == list(range(ranks))
    assert [int(f["HOROVOD_LOCAL_RANK"]) for f in found] == list(range(ranks))
    assert {f["HOROVOD_SIZE"] for f in found} == {f["HOROVOD_LOCAL_SIZE"] for f in found} == {str(ranks)}
    assert {f["HOROVOD_GLOO_IFACE"] for f in found} == {"lo"}
    assert len({f["pid"] for f in found}) == ranks
    assert len({f["parent"] for f in found}) == (1 if ranks <= 2 else 2)
    assert {f["OMP_NUM_THREADS"] for f in found} == {"1"}


def test_one_rank_a_worker(client, stub, mark):
    found = run(where, client=client, ranks=2, options=RankOptions(cores_per_rank=2, env=stub | mark))
    assert len({f["parent"] for f in found}) == 2
    assert {f["OMP_NUM_THREADS"] for f in found} == {"2"}


def test_big_arguments_and_results(client, stub, mark):
    data = np.random.default_rng(1).bytes(50_000_000)
    same, other = run(
        lambda first, *, second: (first, second),
        data,
        second=4,
        client=client,
        ranks=2,
        options=RankOptions(env=stub | mark),
    )
    assert same == other == (data, 4)


def test_output(client, stub, mark, tmp_path, capsys):
    def talk():
        print("out", flush=True)
        print("err", file=sys.stderr, flush=True)
        os.write(1, b"10%\r50%\r100%\nbad \xff byte\nno end")
        return subprocess.run(["cat"], capture_output=True, check=True).stdout  # input ends at once

    lines = []
    found = run(
        talk,
        client=client,
        ranks=2,
        options=RankOptions(
            env=stub | mark,
            log_dir=tmp_path / "logs",
            on_output=lambda rank, line: lines.append((rank, line)),
        ),
    )
    assert found == [b"", b""]
    expected = ["out", "err", "100%", "bad \ufffd byte", "no end"]
    for number in (0, 1):
        assert [line for rank, line in lines if rank == number] == expected
        assert (tmp_path / "logs" / f"rank-{number}.log").read_text().splitlines() == expected
    run(talk, client=client, ranks=1, options=RankOptions(env=stub | mark))
    assert "[0] out\n[0] err\n" in capsys.readouterr().out


def test_much_output(client, stub, mark):
    count = 200_000
    lines = []
    run(
        lambda: print("\n".join(map(str, range(count)))),
        client=client,
        ranks=1,
        options=RankOptions(env=stub | mark, on_output=lambda rank, line: lines.append(line)),
    )
    assert lines == [str(i) for i in range(count)]


def test_two_at_once_and_a_third(client, stub, mark):
    def stay():
        begin = time.time()
        time.sleep(3)
        return begin, time.time(), psutil.Process().parent().ppid()

    with ThreadPoolExecutor(3) as pool:
        runs = [
            pool.submit(run, stay, client=client, ranks=2, options=RankOptions(env=stub | mark))
            for _ in range(3)
        ]
        first, second, third = sorted(r.result()[0] for r in runs)
    assert second[0] < first[1]
    assert first[2] != second[2]
    assert third[0] > first[1]


def test_threads_of_the_driver_as_workers(stub):
    with (
        LocalCluster(n_workers=1, threads_per_worker=2, processes=False, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        assert run(rank, client=client, ranks=2, options=RankOptions(env=stub)) == [0, 1]


# Too little room


def test_not_enough_slots(client, stub, mark):
    with pytest.raises(NotEnoughSlots, match=r"5 of 1 core.* 4 are free, 1 are missing") as caught:
        run(rank, client=client, ranks=5, options=RankOptions(env=stub | mark, timeout=0.5))
    assert (caught.value.wanted, caught.value.free, caught.value.taken) == (5, 4, 0)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
    with pytest.raises(NotEnoughSlots, match="0 are free"):
        run(rank, client=client, ranks=1, options=RankOptions(cores_per_rank=3, env=stub | mark, timeout=0.5))
    assert run(rank, client=client, ranks=4, options=RankOptions(env=stub | mark)) == [0, 1, 2, 3]


def test_slots_that_come_later(stub):
    with (
        LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        threading.Timer(1, cluster.scale, [2]).start()
        assert run(rank, client=client, ranks=2, options=RankOptions(env=stub, timeout=60)) == [0, 1]


def test_busy_workers(client, stub, mark):
    busy = client.map(lambda _: time.sleep(4), range(4), pure=False)
    until(lambda: sum(map(len, client.processing().values())) == 4, 5)
    with pytest.raises(NotEnoughSlots, match="busy with other tasks"):
        run(rank, client=client, ranks=2, options=RankOptions(env=stub | mark, timeout=1))
    assert run(rank, client=client, ranks=2, options=RankOptions(env=stub | mark)) == [0, 1]
    client.gather(busy)


@pytest.mark.faults
def test_port_range_full(client, stub, mark):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match="no free port for the rendezvous"):
            run(rank, client=client, ranks=2, options=RankOptions(env=stub | mark, port_range=(port, port)))
    for _ in range(2):
        assert run(
            rank, client=client, ranks=2, options=RankOptions(env=stub | mark, port_range=(port, port))
        ) == [0, 1]


@pytest.mark.parametrize(("ranks", "error"), [(0, ValueError), (True, TypeError), (2.0, TypeError)])
def test_wrong_numbers_of_ranks(client, ranks, error):
    with pytest.raises(error, match="ranks must be"):
        run(rank, client=client, ranks=ranks)


def test_wrong_client_and_function(client, cluster):
    closed = Client(cluster)
    closed.close()
    with pytest.raises(ValueError, match="not connected"):
        run(rank, client=closed, ranks=1)
    with pytest.raises(TypeError, match="synchronous client"):
        run(rank, client=None, ranks=1)
    with pytest.raises(TypeError, match="callable"):
        run(5, client=client, ranks=1)
    with pytest.raises(TypeError, match="options must be RankOptions"):
        run(rank, client=client, ranks=1, options={"restarts": 1})


# Ranks that fail


class Trouble(ValueError):
    pass


def fail_on_one():
    if rank() == 1:
        print("about to fail")
        raise Trouble("no such branch\nin the file")
    time.sleep(600)


def test_exception(client, stub, mark, capsys):
    start = time.monotonic()
    with pytest.raises(
        RankFailed, match=r"rank 1 of 3 on 127.0.0.1 .* raised Trouble: no such branch"
    ) as caught:
        run(fail_on_one, client=client, ranks=3, options=RankOptions(env=stub | mark))
    print(f"RankFailed after {time.monotonic() - start:.2f} s, start of the ranks included")
    assert time.monotonic() - start < BOUND
    error = caught.value
    assert (error.rank, error.size, error.host) == (1, 3, "127.0.0.1")
    assert (error.exit_status, error.signal) == (1, None)
    assert "in fail_on_one" in error.remote_traceback
    assert error.last_lines == ("about to fail",)
    assert isinstance(error.__cause__, Trouble)
    assert "in fail_on_one" in str(error)
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
    assert run(rank, client=client, ranks=4, options=RankOptions(env=stub | mark)) == [0, 1, 2, 3]


def test_exception_of_a_package_the_driver_has_not_loaded(client, stub, mark):
    def fail():
        import mailbox  # which nobody else loads

        raise mailbox.NoSuchMailboxError("inbox")

    with pytest.raises(RankFailed, match="raised NoSuchMailboxError: inbox") as caught:
        run(fail, client=client, ranks=1, options=RankOptions(env=stub | mark))
    assert caught.value.__cause__ is None
    assert "mailbox" not in sys.modules


def test_first_of_two(client, stub, mark):
    def both():
        time.sleep(0.15 * (2 - rank()))
        raise Trouble(f"on {rank()}")

    with pytest.raises(RankFailed, match="rank 2 of 3"):
        run(both, client=client, ranks=3, options=RankOptions(env=stub | mark))


def test_result_that_cannot_be_pickled(client, stub, mark):
    with pytest.raises(RankFailed, match="raised TypeError: cannot pickle"):
        run(threading.Lock, client=client, ranks=1, options=RankOptions(env=stub | mark))


def test_exception_that_cannot_be_pickled(client, stub, mark):
    def fail():
        error = RuntimeError("plain")
        error.lock = threading.Lock()
        raise error

    with pytest.raises(RankFailed, match="raised RuntimeError: plain") as caught:
        run(fail, client=client, ranks=1, options=RankOptions(env=stub | mark))
    assert caught.value.__cause__ is None


@pytest.mark.faults
@pytest.mark.parametrize(
    ("end", "status", "number", "reason"),
    [
        (lambda: sys.exit(3), 3, None, "raised SystemExit: 3"),
        (lambda: os._exit(4), 4, None, "exited with status 4"),
        (lambda: os._exit(0), 0, None, "exited with status 0 before its function returned"),
        (lambda: os.kill(os.getpid(), signal.SIGSEGV), None, signal.SIGSEGV, "killed by SIGSEGV"),
        (lambda: os.kill(os.getppid(), signal.SIGKILL), None, signal.SIGKILL, "killed by SIGKILL"),
    ],
)
def test_ends(client, stub, mark, end, status, number, reason):
    def on_one():
        if rank() == 1:
            end()
        time.sleep(600)

    with pytest.raises(RankFailed, match=reason) as caught:
        run(on_one, client=client, ranks=2, options=RankOptions(env=stub | mark))
    assert (caught.value.rank, caught.value.exit_status, caught.value.signal) == (1, status, number)


@pytest.mark.faults
def test_what_a_rank_started_ends_with_it(client, stub, mark):
    def start():
        subprocess.Popen(["sleep", "600"])
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if rank() == 1:
            time.sleep(0.5)
            raise Trouble
        subprocess.run(["sleep", "600"], check=False)

    with pytest.raises(RankFailed, match="rank 1 of 2"):
        run(start, client=client, ranks=2, options=RankOptions(env=stub | mark))


@pytest.mark.faults
@pytest.mark.parametrize("fails", [False, True])
def test_what_left_the_ranks_session_ends_with_it(client, stub, mark, fails):
    def start():
        subprocess.Popen(["sleep", "600"], start_new_session=True)
        os.setsid() if rank() == 0 else None
        if rank() == 1 and fails:
            raise Trouble
        time.sleep(600 if fails else 0)
        return "done"

    if fails:
        with pytest.raises(RankFailed, match="rank 1 of 2"):
            run(start, client=client, ranks=2, options=RankOptions(env=stub | mark))
    else:
        assert run(start, client=client, ranks=2, options=RankOptions(env=stub | mark)) == ["done", "done"]


def test_threads_that_never_end(client, stub, mark):
    def start():
        threading.Thread(target=time.sleep, args=(600,)).start()
        sys.stdout.close()
        return rank()

    assert run(start, client=client, ranks=2, options=RankOptions(env=stub | mark)) == [0, 1]


class Unspeakable(Exception):
    def __str__(self):
        raise ValueError("says nothing")


def test_exceptions_that_cannot_be_told(client, stub, mark):
    def fail(error):
        raise error

    with pytest.raises(RankFailed, match="raised Unspeakable") as caught:
        run(fail, Unspeakable(), client=client, ranks=1, options=RankOptions(env=stub | mark))
    assert "in fail" in caught.value.remote_traceback
    with pytest.raises(RankFailed, match="raised Trouble: ooo") as caught:
        run(fail, Trouble("o" * 3_000_000), client=client, ranks=1, options=RankOptions(env=stub | mark))
    assert len(str(caught.value)) < 200_000


def test_a_full_disk_costs_the_logs_and_not_the_run(client, stub, mark, tmp_path):
    def talk():
        for _ in range(40):
            print("x" * 9999, flush=True)
            time.sleep(0.01)
        return rank()

    said = []
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        found = run(
            talk,
            client=client,
            ranks=2,
            options=RankOptions(
                env=stub | mark, log_dir=tmp_path, on_output=lambda *_: None, on_status=said.append
            ),
        )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert found == [0, 1]
    assert len(said) == 1
    assert "no log is kept any more" in said[0]


def test_worker_that_answers_no_more_at_the_start(client, stub, mark):
    """The call does not reach it: the deadline holds all the same, and so does cancelling."""
    address = sorted(client.scheduler_info(n_workers=-1)["workers"])[0]
    process = client.run(os.getpid, workers=[address])[address]
    os.kill(process, signal.SIGSTOP)
    try:
        with pytest.raises(NotEnoughSlots, match="do not answer"):
            run(
                rank,
                bytes(20_000_000),
                client=client,
                ranks=4,
                options=RankOptions(env=stub | mark, timeout=2),
            )
        future = submit(rank, bytes(20_000_000), client=client, ranks=4, options=RankOptions(env=stub | mark))
        time.sleep(1)
        future.cancel()
        with pytest.raises(CancelledError):
            future.result(BOUND)
    finally:
        os.kill(process, signal.SIGCONT)
    assert run(rank, client=client, ranks=4, options=RankOptions(env=stub | mark)) == [0, 1, 2, 3]


def test_no_horovod(client, no_horovod, mark):
    with pytest.raises(HorovodMissing, match=r"127.0.0.1.*not built for TensorFlow.*make horovod"):
        run(rank, client=client, ranks=2, options=RankOptions(env=no_horovod | mark))
    assert run(rank, client=client, ranks=1, options=RankOptions(env=no_horovod | mark)) == [0]


def test_callback_that_fails(client, stub, mark):
    def talk():
        print("hello", flush=True)
        time.sleep(600)

    def fail(rank, line):
        raise Trouble("in the callback")

    with pytest.raises(Trouble, match="in the callback"):
        run(talk, client=client, ranks=2, options=RankOptions(env=stub | mark, on_output=fail))


# Cancellation


@pytest.mark.faults
def test_cancelled_tasks(client, stub, mark, tmp_path):
    clock = Clock(
        lambda: run(sleep_for_ever, tmp_path, client=client, ranks=3, options=RankOptions(env=stub | mark))
    )
    pids(tmp_path, 3)
    start = time.monotonic()
    (key,) = [key for key in client.futures if key.startswith("ranks-") and key.endswith("-2")]
    client.cancel([Future(key, client)], force=True)
    assert isinstance(clock.error_since(start), CancelledError)


DRIVER = """
    import pathlib, signal, sys
    from distributed import Client
    from hepdask.distributed import RankOptions, run

    def sleep_for_ever(ready):
        import os, time
        (ready / os.environ["HOROVOD_RANK"]).write_text(str(os.getpid()))
        time.sleep(600)

    if __name__ == "__main__":
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
        with Client(sys.argv[1]) as client:
            options = RankOptions(env={"PYTHONPATH": sys.argv[3], "TEST_MARK": sys.argv[4]})
            run(sleep_for_ever, pathlib.Path(sys.argv[2]), client=client, ranks=3, options=options)
"""


@pytest.mark.faults
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_driver_goes(client, stub, mark, tmp_path, how):
    script = tmp_path / "driver.py"
    script.write_text(textwrap.dedent(DRIVER))
    ready = tmp_path / "ready"
    ready.mkdir()
    address = client.scheduler.address
    driver = subprocess.Popen(
        [sys.executable, str(script), address, str(ready), stub["PYTHONPATH"], mark["TEST_MARK"]],
        stderr=subprocess.PIPE,
        start_new_session=True,
        cwd=Path(__file__).parents[2],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
    )
    pids(ready, 3)
    assert len(marked(mark["TEST_MARK"])) == 6
    driver.send_signal(how)
    start = time.monotonic()
    until(lambda: not marked(mark["TEST_MARK"]), BOUND)
    print(f"no process left after {time.monotonic() - start:.2f} s")
    error = driver.communicate(timeout=BOUND)[1].decode()
    assert (how == signal.SIGINT) == ("KeyboardInterrupt" in error)
    until(lambda: held(client) == (0, 0, 0), BOUND)
    assert run(rank, client=client, ranks=4, options=RankOptions(env=stub | mark)) == [0, 1, 2, 3]


@pytest.mark.faults
def test_scheduler_goes(stub, tmp_path):
    name = uuid.uuid4().hex
    env = stub | {"TEST_MARK": name}
    with (
        LocalCluster(n_workers=1, threads_per_worker=2, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        clock = Clock(
            lambda: run(sleep_for_ever, tmp_path, client=client, ranks=2, options=RankOptions(env=env))
        )
        pids(tmp_path, 2)
        start = time.monotonic()
        cluster.close()
        assert isinstance(clock.error_since(start), CancelledError | RankFailed)
        until(lambda: not marked(name), BOUND)


@pytest.mark.faults
def test_worker_killed_while_ranks_hold_the_interpreter(client, stub, mark, tmp_path):
    clock = Clock(
        lambda: run(
            hold_the_interpreter, tmp_path, client=client, ranks=3, options=RankOptions(env=stub | mark)
        )
    )
    pids(tmp_path, 3)
    address, process = worker_of(client, 2)
    start = time.monotonic()
    os.kill(process, signal.SIGKILL)
    assert isinstance(clock.error_since(start), RankFailed)
    assert (clock.error.rank, clock.error.worker) == (2, address)
    assert "its Dask worker left the cluster" in str(clock.error)
    until(lambda: not marked(mark["TEST_MARK"]), BOUND)
    assert run(rank, client=client, ranks=4, options=RankOptions(env=stub | mark, timeout=60)) == [0, 1, 2, 3]


@pytest.mark.faults
def test_worker_restarted(client, stub, mark, tmp_path):
    clock = Clock(
        lambda: run(sleep_for_ever, tmp_path, client=client, ranks=1, options=RankOptions(env=stub | mark))
    )
    pids(tmp_path, 1)
    address, _ = worker_of(client, 0)
    start = time.monotonic()
    client.restart_workers([address])
    assert isinstance(clock.error_since(start), RankFailed)


# With Horovod


def test_collectives_without_horovod_do_not_go_on_alone(monkeypatch):
    from hepdask.distributed import collective

    assert collective.size() == 1
    monkeypatch.setenv("HOROVOD_SIZE", "2")
    for use in (collective.rank, collective.size, lambda: collective.gather(1)):
        with pytest.raises(RuntimeError, match="one of several ranks"):
            use()


def collectives():
    import horovod.tensorflow as hvd

    from hepdask.distributed import collective

    total = hvd.allreduce(np.full(3, float(hvd.rank() + 1)), op=hvd.Sum).numpy().tolist()
    return {
        "coordinates": (hvd.rank(), hvd.size(), hvd.local_rank(), hvd.local_size(), hvd.cross_size()),
        "facade": (collective.rank(), collective.size(), collective.local_rank()),
        "sum": total,
        "mean": float(collective.allreduce(np.float64(hvd.rank()))),
        "gathered": collective.gather({"rank": hvd.rank()}),
        "from the last": collective.broadcast([hvd.rank()], hvd.size() - 1),
    }


@pytest.mark.parametrize("ranks", [1, 4])  # 2 and 3 in the tests below
def test_horovod_collectives(horovod, client, mark, ranks):
    found = run(collectives, client=client, ranks=ranks, options=RankOptions(env=mark))
    for number, one in enumerate(found):
        assert one["coordinates"] == (number, ranks, number, ranks, 1)
        assert one["facade"] == (number, ranks, number)
        assert one["sum"] == [ranks * (ranks + 1) / 2] * 3
        assert one["mean"] == (ranks - 1) / 2
        assert one["gathered"] == [{"rank": i} for i in range(ranks)]
        assert one["from the last"] == [ranks - 1]


@pytest.mark.faults
def test_horovod_rank_killed_mid_step(horovod, client, stub, mark, tmp_path):
    clock = Clock(
        lambda: run(reduce_for_ever, tmp_path, client=client, ranks=3, options=RankOptions(env=mark))
    )
    victim = pids(tmp_path, 3)[1]
    start = time.monotonic()
    os.kill(victim, signal.SIGKILL)
    assert isinstance(clock.error_since(start), RankFailed)
    assert (clock.error.rank, clock.error.signal) == (1, signal.SIGKILL)
    assert clock.error.last_lines == ("sum 6.0", "step 20")
    assert run(rank, client=client, ranks=4, options=RankOptions(env=stub | mark)) == [0, 1, 2, 3]


@pytest.mark.faults
def test_horovod_worker_killed_mid_step(horovod, client, stub, mark, tmp_path):
    clock = Clock(
        lambda: run(
            reduce_for_ever, tmp_path, client=client, ranks=2, options=RankOptions(cores_per_rank=2, env=mark)
        )
    )
    pids(tmp_path, 2)
    address, process = worker_of(client, 1)
    start = time.monotonic()
    os.kill(process, signal.SIGKILL)
    assert isinstance(clock.error_since(start), RankFailed)
    assert (clock.error.rank, clock.error.worker) == (1, address)
    until(lambda: not marked(mark["TEST_MARK"]), 2)
    assert run(rank, client=client, ranks=4, options=RankOptions(env=stub | mark, timeout=60)) == [0, 1, 2, 3]


def train(steps, folder):
    """Train a small network on this rank's part of fixed global batches; return what can be compared."""
    import keras
    import tensorflow as tf

    from hepdask.distributed import collective
    from hepdask.distributed import keras as hkeras

    def network(seed):
        keras.utils.set_random_seed(seed)
        return keras.Sequential(
            [
                keras.layers.Input((5,)),
                keras.layers.Dense(8, activation="tanh"),
                keras.layers.Dropout(0.0),  # has a seed, whose type no collective knows
                keras.layers.Dense(1),
            ]
        )

    rng = np.random.default_rng(3)
    x = rng.normal(size=(steps, 12, 5)).astype("f4")
    y = rng.normal(size=(steps, 12, 1)).astype("f4")
    here = slice(collective.rank(), None, collective.size())
    found = {}

    # Through fit, with a different start on each rank that is then broadcast
    model = network(7 + collective.rank())
    optimizer = hkeras.DistributedOptimizer(keras.optimizers.Adam(0.01))
    model.compile(optimizer, loss="mse", jit_compile=False)
    try:
        hkeras.assert_synchronised(model.trainable_variables)
        found["start"] = ()
    except NotSynchronised as error:
        found["start"] = error.variables
    hkeras.broadcast_variables([*model.variables, *optimizer.variables])
    hkeras.assert_synchronised([*model.variables, *optimizer.variables])
    batches = tf.data.Dataset.from_tensor_slices((x[:, here], y[:, here]))
    model.fit(batches, epochs=2, shuffle=False, verbose=0)
    hkeras.assert_synchronised([*model.variables, *optimizer.variables])
    found["fit"] = model.get_weights()

    # By hand, op="sum", from an optimizer with a state
    plain = keras.optimizers.SGD(0.05, momentum=0.9)
    plain.build(model.trainable_variables)
    plain.variables[-1].assign(np.full(plain.variables[-1].shape, 0.01, "f4"))
    summing = hkeras.DistributedOptimizer(plain, op="sum")

    @tf.function
    def step(a, b):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum((model(a, training=True) - b) ** 2) / 12
        summing.apply(tape.gradient(loss, model.trainable_variables), model.trainable_variables)

    for a, b in zip(x[:, here], y[:, here], strict=True):
        step(a, b)
    hkeras.assert_synchronised([*model.variables, *summing.variables])
    found["by hand"] = model.get_weights()

    # Saved, read back as plain Keras would
    if collective.rank() == 0:
        model.save(folder / f"{collective.size()}.keras")

    # An optimizer that reduces nothing
    model.compile(keras.optimizers.Adam(0.01), loss="mse", jit_compile=False)
    model.fit(batches, shuffle=False, verbose=0)
    try:
        hkeras.assert_synchronised(model.variables)
        found["drift"] = ()
    except NotSynchronised as error:
        found["drift"] = error.variables
    return found


def test_horovod_keras(horovod, client, mark, tmp_path):
    import keras

    alone = train(25, tmp_path)
    both = run(train, 25, tmp_path, client=client, ranks=2, options=RankOptions(env=mark))
    for key in ("fit", "by hand"):
        for one, first, second in zip(alone[key], both[0][key], both[1][key], strict=True):
            np.testing.assert_array_equal(first, second)
            np.testing.assert_allclose(first, one, rtol=1e-5, atol=1e-6)
    assert alone["start"] == alone["drift"] == ()
    assert both[0]["start"] == both[1]["start"] == ("sequential/dense/kernel", "sequential/dense_1/kernel")
    assert both[0]["drift"] == both[1]["drift"]
    assert {"sequential/dense/kernel", "sequential/dense_1/bias"} <= set(both[0]["drift"])
    for size in (1, 2):
        plain = keras.models.load_model(tmp_path / f"{size}.keras")
        assert type(plain.optimizer) is keras.optimizers.Adam

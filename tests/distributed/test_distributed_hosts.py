"""Ranks on several hosts, on GPUs, over a chosen interface; hosts that hang or die; TensorFlow's own collectives.

The hosts are addresses of the loopback network, each with Dask workers of its own that were started by hand, as a
batch system would. What a GPU is, Dask believes: the resource ``GPU`` of a worker. No driver answers.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from contextlib import ExitStack

import cloudpickle
import numpy as np
import pytest
from distributed import Client
from helpers.ranks import BOUND, Clock, marked, pids, rank
from helpers.waiting import until

from hepdask.distributed import CannotListen, NotEnoughSlots, RankFailed, RankOptions, rank_addresses, run

cloudpickle.register_pickle_by_value(sys.modules[__name__])


class Farm:
    """A scheduler and workers as processes of their own."""

    def __init__(self, folder, host="127.0.0.1", on=()):
        self.file = folder / "scheduler.json"
        (folder / "nvidia-smi").write_text("#!/bin/sh\nexit 9\n")
        (folder / "nvidia-smi").chmod(0o755)
        self.processes = []
        self.scheduler = self.start("scheduler", "--host", host, "--port", "0", on=on)
        until(self.file.exists, 60)

    def start(self, kind, *options, on=(), **env):
        process = subprocess.Popen(
            [
                *on,
                sys.executable,
                "-m",
                "dask",
                kind,
                "--scheduler-file",
                str(self.file),
                "--no-dashboard",
                *options,
            ],
            stderr=subprocess.DEVNULL,
            env=os.environ | env,
        )
        self.processes.append(process)
        return process

    def worker(self, host, name, gpus="0,1", on=()):
        options = ["--host", host, "--name", name, "--nthreads", "2", "--resources", "GPU=2", "--no-nanny"]
        path = f"{self.file.parent}:{os.environ['PATH']}"
        return self.start(
            "worker", *options, "--death-timeout", "30", on=on, CUDA_VISIBLE_DEVICES=gpus, PATH=path,
            SLURM_JOB_ID=uuid.uuid4().hex,  # GPUs are those of this job
        )  # fmt: skip

    def stop(self):
        for process in self.processes:
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def farm(tmp_path_factory):
    farm = Farm(tmp_path_factory.mktemp("farm"))
    try:
        farm.worker("127.0.0.1", "job-1", "0,1")
        farm.worker("127.0.0.2", "job-2", "GPU-aa,GPU-bb")
        farm.worker("127.0.0.2", "job-3", "0,1")  # another batch job on the same host, which sees its own
        yield farm
    finally:
        farm.stop()


@pytest.fixture(scope="module")
def client(farm):
    with Client(scheduler_file=str(farm.file), timeout=60) as client:
        client.wait_for_workers(3, timeout=60)
        yield client


def where():
    names = ("HOSTNAME", "RANK", "LOCAL_RANK", "LOCAL_SIZE", "CROSS_RANK", "CROSS_SIZE")
    found = {name: os.environ[f"HOROVOD_{name}"] for name in names}
    return found | {name: os.environ.get(name) for name in ("HOROVOD_GLOO_IFACE", "CUDA_VISIBLE_DEVICES")}


# Several hosts


def test_ranks_are_grouped_by_host(client, stub, mark):
    found = run(where, client=client, ranks=6, options=RankOptions(env=stub | mark))
    assert [f["HOSTNAME"] for f in found] == ["127.0.0.2"] * 4 + ["127.0.0.1"] * 2
    assert [int(f["LOCAL_RANK"]) for f in found] == [0, 1, 2, 3, 0, 1]
    assert [int(f["LOCAL_SIZE"]) for f in found] == [4, 4, 4, 4, 2, 2]
    assert [int(f["CROSS_RANK"]) for f in found] == [0, 0, 0, 0, 1, 1]
    assert [int(f["CROSS_SIZE"]) for f in found] == [2, 2, 1, 1, 2, 2]
    seen = [f["CUDA_VISIBLE_DEVICES"] for f in found]
    assert sorted(seen) == ["0", "0", "1", "1", "GPU-aa", "GPU-bb"], "one each, since the workers have some"


def test_each_rank_sees_its_own_gpus(client, stub, mark):
    seen = [
        f["CUDA_VISIBLE_DEVICES"]
        for f in run(where, client=client, ranks=6, options=RankOptions(gpus_per_rank=1, env=stub | mark))
    ]
    assert sorted(seen) == ["0", "0", "1", "1", "GPU-aa", "GPU-bb"]
    seen = [
        f["CUDA_VISIBLE_DEVICES"]
        for f in run(where, client=client, ranks=3, options=RankOptions(gpus_per_rank=2, env=stub | mark))
    ]
    assert sorted(seen) == ["0,1", "0,1", "GPU-aa,GPU-bb"]
    (none,) = run(where, client=client, ranks=1, options=RankOptions(gpus_per_rank=0, env=stub | mark))
    assert none["CUDA_VISIBLE_DEVICES"] == ""
    with pytest.raises(NotEnoughSlots, match=r"4 of 1 core\(s\) and 2 GPU\(s\) each are wanted, 3 are free"):
        run(where, client=client, ranks=4, options=RankOptions(gpus_per_rank=2, env=stub | mark, timeout=0.5))


def test_interface(client, stub, mark):
    found = run(where, client=client, ranks=2, options=RankOptions(interface="lo", env=stub | mark))
    assert [f["HOROVOD_GLOO_IFACE"] for f in found] == ["lo", "lo"]
    with pytest.raises(
        CannotListen, match=r"has no network interface ib7 with an IPv4 address; it has: .*lo"
    ):
        run(where, client=client, ranks=2, options=RankOptions(interface="ib7", env=stub | mark))
    with pytest.raises(RankFailed, match="has no network interface ib7"):
        run(where, client=client, ranks=1, options=RankOptions(interface="ib7", env=stub | mark))
    assert len(run(where, client=client, ranks=6, options=RankOptions(env=stub | mark))) == 6


HOSTS = {"one": "192.0.2.1", "two": "192.0.2.2"}  # addresses for documentation, which nobody has


@pytest.fixture
def hosts():
    """Join two network namespaces by a cable; give, for each, the words that run a command there, under its name."""
    spaces = {name: f"hepdask-{os.getpid()}-{name}" for name in HOSTS}

    def ip(*words):
        subprocess.run(["ip", *words], check=True, capture_output=True, text=True, timeout=30)

    with ExitStack() as stack:
        try:
            for space in spaces.values():
                ip("netns", "add", space)
                stack.callback(ip, "netns", "delete", space)
            one, two = spaces.values()
            ip("link", "add", "cable", "netns", one, "type", "veth", "peer", "name", "cable", "netns", two)
            for name, space in spaces.items():
                ip("-netns", space, "address", "add", f"{HOSTS[name]}/24", "dev", "cable")
                ip("-netns", space, "link", "set", "cable", "up")
                ip("-netns", space, "link", "set", "lo", "up")
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"no network namespaces can be made here: {getattr(error, 'stderr', error)}")
        name_it = ["unshare", "--uts", "sh", "-c", 'hostname "$0" && exec "$@"']
        yield {name: ["ip", "netns", "exec", space, *name_it, name] for name, space in spaces.items()}


DRIVER = """
import json, sys
from distributed import Client
from hepdask.distributed import RankOptions, run

def where():
    import os, socket
    import horovod.tensorflow as hvd
    import numpy as np
    total = hvd.allreduce(np.float64(hvd.rank() + 1), op=hvd.Sum).numpy()
    return [socket.gethostname(), os.environ["HOROVOD_HOSTNAME"], os.environ["HOROVOD_CROSS_SIZE"], float(total)]

with Client(scheduler_file=sys.argv[1], timeout=60) as client:
    client.wait_for_workers(2, timeout=60)
    options = RankOptions(cores_per_rank=2, interface="cable", port_range=(10000, 10010))
    found = run(where, client=client, ranks=2, options=options)
    print("found", json.dumps(found), sep="\\n")
"""


def test_two_hosts_with_a_network_between_them(horovod, hosts, tmp_path):
    farm = Farm(tmp_path, HOSTS["one"], hosts["one"])
    try:
        for name, address in HOSTS.items():
            farm.worker(address, name, on=hosts[name])
        words = [*hosts["one"], sys.executable, "-c", DRIVER, str(farm.file)]
        done = subprocess.run(words, capture_output=True, text=True, timeout=200)
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout.splitlines()[-1])
        assert sorted(found) == [["one", "192.0.2.1", "2", 3.0], ["two", "192.0.2.2", "2", 3.0]]
    finally:
        farm.stop()


# Hosts and ranks that hang or die


def reduce(folder):
    import horovod.tensorflow as hvd

    for step in range(10**6):
        hvd.allreduce(np.ones(1000, "f4"), name="step")
        if step == 20:
            (folder / str(hvd.rank())).write_text(str(os.getpid()))
        time.sleep(0.001)


@pytest.mark.faults
def test_horovod_rank_that_hangs(horovod, client, stub, mark, tmp_path):
    """Stopped as a whole, on another host: the one that answers no more is named, not the one that noticed."""
    env = mark | {"HOROVOD_GLOO_TIMEOUT_SECONDS": "2"}
    clock = Clock(
        lambda: run(reduce, tmp_path, client=client, ranks=2, options=RankOptions(cores_per_rank=2, env=env))
    )
    hung = pids(tmp_path, 2)[1]
    start = time.monotonic()
    os.kill(hung, signal.SIGSTOP)
    error = clock.error_since(start)
    assert isinstance(error, RankFailed)
    assert error.rank == 1
    assert "stopped answering the other ranks" in str(error)
    assert len(run(where, client=client, ranks=6, options=RankOptions(env=stub | mark))) == 6


def join_none(but):
    """Join no collective, all ranks but one, which so waits for ever."""
    import horovod.tensorflow as hvd

    print("begin", flush=True)
    if hvd.rank() == but:
        hvd.allreduce(np.ones(1000, "f4"), name="alone")
    elif but is not None:
        time.sleep(600)
    return hvd.rank()


@pytest.mark.faults
def test_horovod_rank_that_joins_no_collective(horovod, client, mark):
    """It keeps the others waiting until the bound on silence is over; where no rank joins any, nobody waits."""
    clock = Clock(
        lambda: run(
            join_none,
            0,
            client=client,
            ranks=2,
            options=RankOptions(cores_per_rank=2, env=mark, silence_timeout=15),
        )
    )
    until(lambda: clock.error or clock.result, 120, "the bound is over")
    assert isinstance(clock.error, RankFailed)
    assert "printed nothing for 15 s, nor did any other rank" in str(clock.error)
    assert not marked(mark["TEST_MARK"])
    assert run(join_none, None, client=client, ranks=2, options=RankOptions(cores_per_rank=2, env=mark)) == [
        0,
        1,
    ]


@pytest.mark.faults
def test_rank_that_hangs_in_silence(client, stub, mark):
    def work():
        print("begin", flush=True)
        for step in range(20 if rank() else 5):
            time.sleep(0.2)
            print(f"step {step}", flush=True)
        time.sleep(600)

    start = time.monotonic()
    with pytest.raises(RankFailed, match="printed nothing for 3 s, nor did any other rank") as caught:
        run(work, client=client, ranks=2, options=RankOptions(env=stub | mark, silence_timeout=3))
    assert time.monotonic() - start > 20 * 0.2 + 3
    assert (caught.value.rank, caught.value.last_lines[-1]) == (0, "step 4")
    assert len(run(where, client=client, ranks=6, options=RankOptions(env=stub | mark))) == 6


# TensorFlow's collectives


def mirrored(steps):
    """Train a line with a training loop of one's own under MultiWorkerMirroredStrategy."""
    import tensorflow as tf

    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    task = json.loads(os.environ["TF_CONFIG"])["task"]["index"]
    data = np.random.default_rng(2)
    x, y = data.normal(size=(2, steps, 8)).astype("f4")
    with strategy.scope():
        slope = tf.Variable(0.0)

    @tf.function
    def step(a, b):
        def replica(a, b):
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum((slope * a - b) ** 2) / 8
            total = tf.distribute.get_replica_context().all_reduce("sum", tape.gradient(loss, slope))
            slope.assign_sub(0.05 * total)

        strategy.run(replica, args=(a, b))

    for a, b in zip(x, y, strict=True):
        step(a[task::2], b[task::2])
    expected = 0.0
    for a, b in zip(x.astype("f8"), y.astype("f8"), strict=True):
        expected -= 0.05 * np.sum(2 * a * (expected * a - b)) / 8
    if task == 0:  # the other is done, and must still answer who has not got its last numbers
        time.sleep(2)
        host, port = json.loads(os.environ["TF_CONFIG"])["cluster"]["worker"][1].rsplit(":", 1)
        socket.create_connection((host, int(port)), 5).close()
    return strategy.num_replicas_in_sync, task, float(slope.numpy()), float(expected), os.environ["TF_CONFIG"]


def test_tf_distribute(client, stub, mark):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    first = min(port, 65_000)
    found = run(
        mirrored,
        20,
        client=client,
        ranks=2,
        options=RankOptions(backend="tf.distribute", env=mark, port_range=(first, first + 40)),
    )
    assert [(size, task) for size, task, *_ in found] == [(2, 0), (2, 1)]
    assert found[0][2] == found[1][2] == pytest.approx(found[0][3], rel=1e-5)
    for *_, config in found:
        workers = json.loads(config)["cluster"]["worker"]
        assert all(first <= int(address.split(":")[1]) <= first + 40 for address in workers)


@pytest.mark.parametrize("ranks", [1, 3])
def test_ranks_find_each_other_without_tensorflow(client, stub, mark, ranks):
    """Each sends its number to the next, on connections of its own."""

    def pass_on():
        from hepdask.distributed import rank_addresses

        mine, following = (
            rank_addresses.addresses()[(rank_addresses.rank() + k) % rank_addresses.size()].rsplit(":", 1)
            for k in (0, 1)
        )
        with socket.create_server((mine[0], int(mine[1]))) as server:
            rank_addresses.barrier("listening", 60)
            with socket.create_connection((following[0], int(following[1])), 10) as way:
                way.sendall(bytes([rank_addresses.rank()]))
                server.settimeout(10)
                with server.accept()[0] as connection:
                    came = connection.recv(1)[0]
            rank_addresses.barrier("heard", 60)
        return came, "tensorflow" in sys.modules

    found = run(
        pass_on, client=client, ranks=ranks, options=RankOptions(backend="tf.distribute", env=stub | mark)
    )
    assert found == [((rank - 1) % ranks, False) for rank in range(ranks)]


def test_only_such_ranks_have_addresses(monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    with pytest.raises(RuntimeError, match=r'only with backend="tf\.distribute"'):
        rank_addresses.addresses()


@pytest.mark.faults
def test_tf_distribute_rank_killed(client, stub, mark):
    def die():
        if rank() == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(600)

    with pytest.raises(RankFailed, match=r"rank 1 of 2 .* killed by SIGKILL"):
        run(die, client=client, ranks=2, options=RankOptions(backend="tf.distribute", env=stub | mark))


# Last, since nothing works any more afterwards


@pytest.mark.faults
def test_rendezvous_host_killed(stub, tmp_path):
    farm = Farm(tmp_path)
    try:
        farm.worker("127.0.0.1", "one")
        mark = f"host-{os.getpid()}"
        ready = tmp_path / "ready"
        ready.mkdir()

        def stay():
            (ready / str(rank())).write_text(str(os.getpid()))
            time.sleep(600)

        with Client(scheduler_file=str(farm.file), timeout=60) as client:
            env = stub | {"TEST_MARK": mark}
            clock = Clock(lambda: run(stay, client=client, ranks=2, options=RankOptions(env=env)))
            pids(ready, 2)
            logging.getLogger("distributed").setLevel(logging.CRITICAL)
            start = time.monotonic()
            farm.scheduler.kill()
            clock.error_since(start)
            until(lambda: not marked(mark), BOUND)
    finally:
        farm.stop()

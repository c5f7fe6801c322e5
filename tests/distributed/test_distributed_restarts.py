"""Going on after a failure: checkpoints, starting again with as many or fewer ranks, runs in the background."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import CancelledError, as_completed
from pathlib import Path

import cloudpickle
import numpy as np
import pytest
from distributed import Client, LocalCluster
from helpers.ranks import BOUND, marked, pids, rank
from helpers.waiting import until

from hepdask.distributed import Checkpoint, CheckpointDamaged, RankFailed, RankOptions, run, submit
from hepdask.distributed import checkpoint as checkpoints

cloudpickle.register_pickle_by_value(sys.modules[__name__])


@pytest.fixture(scope="module")
def client():
    with (
        LocalCluster(
            n_workers=2, threads_per_worker=2, dashboard_address=None, silence_logs=logging.CRITICAL
        ) as cluster,
        Client(cluster) as client,
    ):
        yield client


# Checkpoints


def test_checkpoint_gives_back_what_was_saved(tmp_path):
    checkpoint = Checkpoint(tmp_path)
    assert checkpoint.load() is None
    state = {"epoch": 3, "step": 7, "weights": [np.arange(6.0).reshape(2, 3)], "order": (1, 2)}
    generator = np.random.default_rng(5)
    generator.random(10)
    checkpoint.save(state, generator.bit_generator.state)
    going_on = generator.random(4)
    saved = pickle.loads(pickle.dumps(checkpoint)).load()
    assert (saved.shared["epoch"], saved.shared["step"], saved.shared["order"]) == (3, 7, (1, 2))
    np.testing.assert_array_equal(saved.shared["weights"][0], state["weights"][0])
    generator.bit_generator.state = saved.per_rank[0]
    np.testing.assert_array_equal(generator.random(4), going_on)


@pytest.mark.parametrize("value", [np.random.default_rng(1), Path("x"), print, {"a": [ValueError("x")]}])
def test_a_checkpoint_holds_data_alone(tmp_path, value):
    with pytest.raises(TypeError, match="a checkpoint holds numbers"):
        Checkpoint(tmp_path).save(value)
    assert list(tmp_path.iterdir()) == []


class Runs:
    """Does something when it is read from a pickle."""

    def __init__(self, function, *words):
        self.words = function, words

    def __reduce__(self):
        return self.words


@pytest.mark.parametrize("way", ["os.system", "builtins.exec", "numpy", "nested"])
def test_a_checkpoint_of_somebody_else_runs_nothing(tmp_path, way, capsys):
    """A file with a right checksum that would make another one when it is read."""
    marker, folder = tmp_path / "ran", tmp_path / "checkpoints"
    folder.mkdir()
    bad = {
        "os.system": Runs(os.system, f"touch {marker}"),
        "builtins.exec": Runs(exec, f"open({str(marker)!r}, 'w')"),
        "numpy": Runs(np.memmap, str(marker), "u1", "w+", 0, (1,)),
        "nested": np.array([Runs(os.mkdir, str(marker))], object),
    }[way]
    content = pickle.dumps(({"state": bad}, [None]))
    good = Checkpoint(folder)
    good.save("before")
    (folder / "checkpoint-00000002").write_bytes(
        checkpoints.HEAD + hashlib.blake2b(content, digest_size=checkpoints.DIGEST).digest() + content
    )
    assert good.load().shared == "before"
    assert "checkpoint-00000002 is damaged" in capsys.readouterr().out
    assert not marker.exists()
    pickle.loads(content)  # the attack itself works
    assert marker.exists()


def test_the_last_two_checkpoints_are_kept(tmp_path):
    checkpoint = Checkpoint(tmp_path)
    for epoch in range(5):
        checkpoint.save(epoch)
        assert checkpoint.load().shared == epoch
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize(
    "spoil",
    [
        lambda content: b"",
        lambda content: content[:-1],
        lambda content: content[:-3] + bytes([content[-3] ^ 1]) + content[-2:],
        lambda content: b"x" + content,
    ],
)
def test_a_damaged_checkpoint_is_not_loaded(tmp_path, spoil, capsys):
    checkpoint = Checkpoint(tmp_path)
    checkpoint.save("before")
    checkpoint.save("after")
    first, second = sorted(tmp_path.iterdir())
    second.write_bytes(spoil(second.read_bytes()))
    assert checkpoint.load().shared == "before"
    assert f"{second} is damaged" in capsys.readouterr().out
    first.write_bytes(spoil(first.read_bytes()))
    with pytest.raises(CheckpointDamaged, match="remove them to start from the beginning"):
        checkpoint.load()
    checkpoint.save("anew")
    assert checkpoint.load().shared == "anew"


def test_a_checkpoint_needs_its_folder(tmp_path):
    for use in (Checkpoint(tmp_path / "none").load, lambda: Checkpoint(tmp_path / "none").save(1)):
        with pytest.raises(FileNotFoundError, match="that driver and workers share"):
            use()


SAVE_FOR_EVER = """
    import sys
    from hepdask.distributed import Checkpoint

    checkpoint = Checkpoint(sys.argv[1])
    saved = checkpoint.load()
    number = saved.shared[0] if saved else 0
    while True:
        number += 1
        checkpoint.save((number, bytes(2_000_000)))
        print(number, flush=True)
"""


def test_a_kill_at_any_moment_leaves_a_good_checkpoint(tmp_path):
    random = np.random.default_rng(1)
    confirmed = 0
    for _ in range(4):
        process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(SAVE_FOR_EVER), str(tmp_path)],
            stdout=subprocess.PIPE,
            cwd=Path(__file__).parents[2],
        )
        first = process.stdout.readline()
        time.sleep(random.uniform(0, 0.05))
        process.kill()
        lines = (first + process.communicate()[0]).decode().split()
        confirmed = max(confirmed, *map(int, lines))
        saved = Checkpoint(tmp_path).load().shared[0]
        assert saved in (confirmed, confirmed + 1)
        confirmed = saved


# Starting again


def count_up(folder, checkpoint=None):
    """Say which start this is, and how many ranks it has."""
    number = len(list(folder.glob(f"start-*-{rank()}")))
    (folder / f"start-{number}-{rank()}").write_text(os.environ["HOROVOD_SIZE"])
    return number


def fail_at_first(folder, times):
    number = count_up(folder)
    print(f"start {number}", flush=True)
    if number < times and rank() == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    if number < times:
        time.sleep(600)
    return rank(), number


@pytest.mark.faults
def test_restarts(client, stub, mark, tmp_path):
    said = []
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "rank-7.log").write_text("of an earlier run")
    found = run(
        fail_at_first,
        tmp_path,
        2,
        client=client,
        ranks=3,
        options=RankOptions(env=stub | mark, restarts=2, log_dir=tmp_path / "logs", on_status=said.append),
    )
    assert found == [(0, 2), (1, 2), (2, 2)]
    assert len(said) == 2
    assert all("rank 1 of 3" in line and "killed by SIGKILL; starting again" in line for line in said)
    assert sorted(path.name for path in (tmp_path / "logs").iterdir()) == [f"rank-{i}.log" for i in range(3)]
    assert (tmp_path / "logs" / "rank-0.log").read_text() == "start 0\nstart 1\nstart 2\n"


def test_restarts_are_used_up(client, stub, mark, tmp_path):
    with pytest.raises(RankFailed, match=r"rank 1 of 2 .* killed by SIGKILL"):
        run(
            fail_at_first,
            tmp_path,
            9,
            client=client,
            ranks=2,
            options=RankOptions(env=stub | mark, restarts=1),
        )
    assert len(list(tmp_path.glob("start-*-1"))) == 2


def test_some_failures_are_final(client, stub, mark, tmp_path):
    def fail(folder):
        count_up(folder)
        raise KeyError("a bug")

    for error, starts in ((KeyError, 1), ((OSError, LookupError), 2), (OSError, 5)):
        with pytest.raises(RankFailed, match="a bug"):
            run(
                fail,
                tmp_path,
                client=client,
                ranks=1,
                options=RankOptions(env=stub | mark, restarts=2, give_up_on=error),
            )
        assert len(list(tmp_path.glob("start-*-0"))) == starts


@pytest.mark.faults
def test_going_on_with_fewer(stub, mark, tmp_path):
    def stay_if_first(folder):
        if count_up(folder) == 0:
            time.sleep(600)
        return rank()

    def lose_one():
        until(lambda: len(list(tmp_path.glob("start-0-*"))) == 3, 60)
        cluster.scale(2)

    with (
        LocalCluster(n_workers=3, threads_per_worker=1, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        threading.Thread(target=lose_one).start()
        said = []
        found = run(
            stay_if_first,
            tmp_path,
            client=client,
            ranks=3,
            options=RankOptions(
                env=stub | mark, restarts=1, min_ranks=2, regroup_timeout=1, on_status=said.append
            ),
        )
    assert found == [0, 1]
    assert {path.read_text() for path in tmp_path.glob("start-1-*")} <= {"2", "3"}
    assert any("its Dask worker left the cluster; starting again" in line for line in said)
    assert any("3 of 1 core(s) each are wanted, 2 are free, 1 are missing" in line for line in said)


def test_no_more_ranks_can_be_required_than_there_are(client):
    with pytest.raises(ValueError, match=r"min_ranks must be from 1 to ranks \(2\), not 3"):
        run(rank, client=client, ranks=2, options=RankOptions(min_ranks=3))


# In the background


def sleep_for_ever(ready):
    (ready / str(rank())).write_text(str(os.getpid()))
    time.sleep(600)


def test_submit(client, stub, mark, tmp_path):
    def both(ready):
        (ready / str(rank())).write_text("here")
        until(lambda: (ready / "go").exists(), 60)
        return rank() + 10

    called = []
    future = submit(both, tmp_path, client=client, ranks=2, options=RankOptions(env=stub | mark))
    future.add_done_callback(called.append)
    until(lambda: len(list(tmp_path.iterdir())) == 2, 60)
    assert (future.done(), future.running(), future.cancelled(), future.status) == (
        False,
        True,
        False,
        "pending",
    )
    with pytest.raises(TimeoutError):
        future.result(0.1)
    (tmp_path / "go").touch()
    assert list(as_completed([future], 60)) == [future]
    assert future.result() == [10, 11]
    assert (future.done(), future.cancel(), future.status, called) == (True, False, "finished", [future])


def test_submit_in_a_coroutine(client, stub, mark):
    async def both():
        futures = [
            submit(rank, client=client, ranks=2, options=RankOptions(env=stub | mark)) for _ in range(2)
        ]
        return await asyncio.gather(*futures)

    assert asyncio.run(both()) == [[0, 1], [0, 1]]


def test_submit_that_fails(client, stub, mark):
    def fail():
        raise KeyError("lost")

    future = submit(fail, client=client, ranks=2, options=RankOptions(env=stub | mark))
    assert isinstance(future.exception(60), RankFailed)
    assert isinstance(submit(rank, client=client, ranks=0).exception(60), ValueError)
    assert future.status == "error"


@pytest.mark.faults
def test_cancel(client, stub, mark, tmp_path):
    future = submit(sleep_for_ever, tmp_path, client=client, ranks=3, options=RankOptions(env=stub | mark))
    pids(tmp_path, 3)
    start = time.monotonic()
    assert future.cancel()
    with pytest.raises(CancelledError):
        future.result(BOUND)
    print(f"cancelled after {time.monotonic() - start:.2f} s")
    assert marked(mark["TEST_MARK"]) == []
    assert (future.status, future.cancelled(), future.cancel()) == ("cancelled", True, True)
    assert run(rank, client=client, ranks=4, options=RankOptions(env=stub | mark)) == [0, 1, 2, 3]


def test_cancel_while_waiting_for_slots(client, stub, mark):
    said = []
    future = submit(rank, client=client, ranks=9, options=RankOptions(env=stub | mark, on_status=said.append))
    until(lambda: said, 10)
    future.cancel()
    with pytest.raises(CancelledError):
        future.result(BOUND)
    assert "9 of 1 core(s) each are wanted, 4 are free, 5 are missing" in said[0]
    assert "2 on tcp://127.0.0.1:" in said[0]


TERMINAL = """
    import signal, sys, time
    from hepdask import clusters, distributed

    def work():
        print("begin", flush=True)
        time.sleep(600)

    if __name__ == "__main__":
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
        try:
            with clusters.connect({"workers": 2, "dashboard_port": 0}) as client:
                options = distributed.RankOptions(env={"PYTHONPATH": sys.argv[1]})
                distributed.run(work, client=client, ranks=2, options=options)
        except KeyboardInterrupt:
            print("interrupted", flush=True)
"""


@pytest.mark.faults
def test_ctrl_c_reaches_all_processes_of_a_terminal(stub, tmp_path):
    script, name = tmp_path / "driver.py", f"terminal-{os.getpid()}"
    script.write_text(textwrap.dedent(TERMINAL))
    root = Path(__file__).parents[2]
    driver = subprocess.Popen(
        [sys.executable, str(script), stub["PYTHONPATH"]],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True, cwd=root,
        env=os.environ | {"PYTHONPATH": str(root), "TEST_MARK": name},
    )  # fmt: skip
    while b"begin" not in driver.stdout.readline():
        assert driver.poll() is None
    os.killpg(driver.pid, signal.SIGINT)
    said = driver.communicate(timeout=60)[0].decode()
    assert "interrupted" in said
    assert "Traceback" not in said
    assert marked(name) == []


# With Horovod

EPOCHS, STEPS, BATCH = 3, 6, 12


def learn(folder=None, checkpoint=None):
    """Fit a small network on fixed global batches, saving each step; return the loss of each step."""
    import keras
    import tensorflow as tf

    from hepdask.distributed import collective
    from hepdask.distributed import keras as hkeras

    data = np.random.default_rng(3)
    x = data.normal(size=(STEPS * BATCH, 5)).astype("f4")
    y = (x[:, :1] * x[:, 1:2]).astype("f4")
    keras.utils.set_random_seed(4)
    model = keras.Sequential([keras.layers.Input((5,)), keras.layers.Dense(8, "tanh"), keras.layers.Dense(1)])
    optimizer = hkeras.DistributedOptimizer(keras.optimizers.Adam(0.03), op="sum")
    optimizer.build(model.trainable_variables)
    variables = [*model.variables, *optimizer.variables]
    losses, order_of = [], np.random.default_rng(9)
    epoch, step, order = 0, 0, order_of.permutation(len(x))
    if checkpoint and (saved := checkpoint.load()):
        epoch, step, order, losses, order_of.bit_generator.state = saved.shared["where"]
        hkeras.set_values(variables, saved.shared["variables"])

    while epoch < EPOCHS:
        while step < STEPS:
            mine = order[step * BATCH : (step + 1) * BATCH][collective.rank() :: collective.size()]
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum((model(x[mine], training=True) - y[mine]) ** 2) / BATCH
            optimizer.apply(tape.gradient(loss, model.trainable_variables), model.trainable_variables)
            losses.append(float(collective.allreduce(loss, "sum", "loss")))
            step += 1
            if checkpoint:
                where = (epoch, step, order, losses, order_of.bit_generator.state)
                checkpoint.save({"where": where, "variables": hkeras.get_values(variables)})
            if folder is not None and (epoch, step) == (1, 2) and not (folder / "gone").exists():
                if collective.rank() == 0:
                    (folder / "gone").touch()
                time.sleep(600)
        hkeras.assert_synchronised(variables)
        epoch, step, order = epoch + 1, 0, order_of.permutation(len(x))
    return losses, collective.size()


@pytest.mark.slow
@pytest.mark.faults
def test_horovod_learning_curve_of_a_run_that_lost_a_worker(horovod, mark, tmp_path):
    alone, _ = learn()
    assert np.mean(alone[-STEPS:]) < 0.8 * np.mean(alone[:STEPS])

    def lose_one():
        until((tmp_path / "gone").exists, 200)
        cluster.scale(2)

    with (
        LocalCluster(n_workers=3, threads_per_worker=1, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        threading.Thread(target=lose_one).start()
        found = run(
            learn,
            tmp_path,
            client=client,
            ranks=3,
            options=RankOptions(
                env=mark, checkpoint=tmp_path / "checkpoint", restarts=1, min_ranks=1, regroup_timeout=0
            ),
        )
    assert [size for _, size in found] == [2, 2]
    for losses, _ in found:
        assert len(losses) == EPOCHS * STEPS
        np.testing.assert_allclose(losses, alone, rtol=2e-6)

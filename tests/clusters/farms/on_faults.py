"""What can happen to jobs on a farm, in the middle of a preparation: no event may be lost, no worker stay away."""

import json
import sys
import time

import pytest
from clusters.farms.daemons import PATIENCE
from clusters.farms.fixtures import (
    connected_job,
    is_back,
    jobs_of,
    measured,
    prepare_disturbed,
    slow_selection,
)
from helpers.waiting import until

from hepdask import clusters, prepare
from hepdask.errors import ClusterError


def pending_job(monitor):
    """Give the job that waits when all cores are taken."""
    if "6 connected" in monitor.summary():
        return next(
            (job for job in monitor.jobs.values() if job.state.value == "pending" and job.number), None
        )
    return None


@pytest.mark.parametrize("fault", ["hold", "vacate"])
def test_a_running_job_is_disturbed(farm, fault, farm_client, monitor, slow_config, expected):
    job, before = connected_job(monitor), jobs_of(farm)
    found, at = prepare_disturbed(slow_config, farm_client, lambda: getattr(farm, fault)(job))
    assert found == expected
    until(lambda: is_back(monitor), PATIENCE, f"two workers; {monitor.summary()}")
    measured(farm, fault, monitor, at, slow_config, found, expected)
    changes = [(c.number, c.state.value) for c in monitor.history if c.time > at]
    if fault == "vacate":  # the batch system runs it again itself
        assert (job, "connected") in changes
        assert (job, "lost") not in changes
        assert jobs_of(farm) == before
    else:
        assert (job, "lost") in changes
        until(lambda: not farm.exists(job), PATIENCE, "the job is gone")


def test_a_pending_job_is_killed(farm, farm_client, monitor):
    farm_client.cluster.hold(7)  # one more than there are cores
    try:
        waiting = until(lambda: pending_job(monitor), PATIENCE, "a pending job")
        at = time.monotonic()
        farm.kill(waiting.number)
        until(lambda: waiting.state.value == "lost", PATIENCE, "that it is gone")
        until(lambda: "1 pending" in monitor.summary(), PATIENCE, f"another one; {monitor.summary()}")
        measured(farm, "kill pending", monitor, at)
    finally:
        farm_client.cluster.hold()
    until(lambda: is_back(monitor), PATIENCE, f"two workers; {monitor.summary()}")


def test_a_node_goes_down(farm, farm_client, monitor, slow_config, expected):
    job, back = connected_job(monitor), []
    found, at = prepare_disturbed(slow_config, farm_client, lambda: back.append(farm.stop_node_of(job)))
    try:
        assert found == expected
        until(lambda: is_back(monitor), PATIENCE, f"two workers; {monitor.summary()}")
        measured(farm, "node down", monitor, at, slow_config, found, expected)
    finally:
        back[0]()


def test_the_scheduler_of_the_batch_system_is_restarted(farm, farm_client, monitor, slow_config, expected):
    def restart():
        farm.stop_controller()
        time.sleep(3)
        farm.start_controller()

    found, at = prepare_disturbed(slow_config, farm_client, restart)
    assert found == expected
    measured(farm, "scheduler restarted", monitor, at, slow_config, found, expected)
    until(lambda: is_back(monitor), PATIENCE, f"two workers; {monitor.summary()}")
    at, job = time.monotonic(), connected_job(monitor)
    farm.kill(job)  # the monitor still sees what happens
    until(
        lambda: any(c.number == job and c.time > at for c in monitor.history), PATIENCE, "that it was killed"
    )
    until(lambda: is_back(monitor), PATIENCE, f"two workers; {monitor.summary()}")


def test_a_job_with_two_workers_is_replaced(farm, make_settings):
    with clusters.connect(make_settings(cores=2, processes=2, workers=2)) as client:
        monitor = client.cluster.job_monitor
        until(
            lambda: len(client.nthreads()) == 2 and monitor.summary() == "1 connected",
            PATIENCE,
            "two workers",
        )
        farm.kill(connected_job(monitor))
        until(lambda: monitor.summary() != "1 connected", PATIENCE, "that one job is gone")
        until(
            lambda: len(client.nthreads()) == 2 and monitor.summary() == "1 connected",
            PATIENCE,
            "two new workers",
        )


def test_there_are_more_workers_while_there_is_more_to_do(
    farm, make_settings, make_config, tmp_path, expected
):
    config = make_config(input={"chunk_events": 3}, analysis=slow_selection(tmp_path))
    others = jobs_of(farm)
    with clusters.connect(make_settings(workers=1, maximum_workers=4)) as client:
        monitor = client.cluster.job_monitor

        def kill_one_of_many():
            until(lambda: len(client.nthreads()) > 2, PATIENCE, f"more workers; {monitor.summary()}")
            now = time.monotonic()
            farm.kill(connected_job(monitor))
            return now

        found, at = prepare_disturbed(config, client, kill_one_of_many)
        assert found == expected
        measured(farm, "kill while elastic", monitor, at, config, found, expected)
        until(
            lambda: monitor.summary() == "1 connected",
            PATIENCE,
            f"that the others have gone; {monitor.summary()}",
        )
        until(lambda: len(jobs_of(farm) - others) == 1, PATIENCE, "that their jobs are gone")


def test_the_lifetime_is_reached(farm, farm_client, monitor, slow_config, expected):
    workers = farm_client.run(lambda dask_worker: (dask_worker.name, dask_worker.lifetime))
    assert all(6480 - 360 <= lifetime <= 6480 + 360 for _, lifetime in workers.values())
    address, (name, _) = next(iter(workers.items()))

    def end(dask_worker):  # what a worker does when its lifetime is over
        dask_worker.loop.call_later(0.2, dask_worker.close_gracefully, reason="worker-lifetime-reached")

    def act():
        farm_client.run(end, workers=[address])

    found, at = prepare_disturbed(slow_config, farm_client, act)
    assert found == expected
    until(lambda: is_back(monitor), PATIENCE, f"two workers; {monitor.summary()}")
    assert name not in monitor.jobs
    measured(farm, "lifetime", monitor, at, slow_config, found, expected)


def test_the_walltime_is_reached(farm, make_settings, make_config, tmp_path, expected):
    if farm.kind == "slurm":  # its least is a minute; the job's is cut short, at a look every half minute
        settings, pace = make_settings(), 4
    else:  # long enough for a worker to do something on a machine that has other things to do
        settings, pace = make_settings(walltime="00:02:00", lifetime=119), 14
    config = make_config(input={"chunk_events": 10}, analysis=slow_selection(tmp_path, pace))
    with clusters.connect(settings) as client:
        monitor = client.cluster.job_monitor
        found, at = prepare_disturbed(config, client, lambda: farm.shorten(connected_job(monitor)))
        assert found == expected
        ended = until(
            lambda: next((c for c in monitor.history if c.state.value == "lost"), None), PATIENCE, "the end"
        )
        assert "TIMEOUT" in ended.reason or "PeriodicRemove" in ended.reason
        until(lambda: is_back(monitor), PATIENCE, f"two workers; {monitor.summary()}")
        measured(farm, "walltime", monitor, at, config, found, expected)


def test_submissions_are_rejected_for_a_while(farm, farm_client, monitor, slow_config, expected):
    rejected = lambda: any(c.state.value == "rejected" for c in monitor.history)  # noqa: E731

    def close_and_kill():
        farm.close()
        try:
            farm.kill(connected_job(monitor))
            until(rejected, PATIENCE, "a rejection")
        finally:
            farm.open()

    found, at = prepare_disturbed(slow_config, farm_client, close_and_kill)
    assert found == expected
    until(lambda: is_back(monitor), PATIENCE, f"two workers; {monitor.summary()}")
    measured(farm, "rejected for a while", monitor, at, slow_config, found, expected, states=["rejected"])


def test_a_job_that_can_never_start_is_an_error_with_the_reason(farm, make_settings):
    wrong = (
        ({"queue": "short"}, "PartitionTimeLimit")
        if farm.kind == "slurm"
        else (
            {"memory": "900GB"},
            "it requests 858306 MB of memory, and the largest slot of the pool has 48000",
        )
    )
    others, begin = jobs_of(farm), time.monotonic()
    with pytest.raises(ClusterError, match=f"can never start: {wrong[1]}"):  # noqa: SIM117
        with clusters.connect(make_settings(**wrong[0])):
            pass
    print(json.dumps({"farm": farm.kind, "fault": "can never start", "noticed_s": time.monotonic() - begin}))
    until(lambda: jobs_of(farm) <= others, PATIENCE, "that its jobs are gone")


def test_jobs_that_fail_one_after_another_are_given_up(farm, make_settings, tmp_path):
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho no module named hepdask >&2\nexit 3\n")
    python.chmod(0o755)
    with pytest.raises(ClusterError, match=r"(?s)[34] jobs in a row ended before .*no module named hepdask"):  # noqa: SIM117
        with clusters.connect(make_settings(python=str(python))):
            pass


def test_jobs_that_fail_in_the_middle_of_a_run_end_it(farm, make_settings, tmp_path, slow_config):
    """The first worker comes, then no more: what is said is why."""
    closed, python = tmp_path / "closed", tmp_path / "python"
    python.write_text(
        f"#!/bin/sh\nif [ -e {closed} ]; then echo the door is closed >&2; exit 3; fi\n"
        f'exec {sys.executable} "$@"\n'
    )
    python.chmod(0o755)

    def run():
        with clusters.connect(make_settings(python=str(python), workers=1)) as client:
            closed.touch()
            farm.kill(until(lambda: connected_job(client.cluster.job_monitor), PATIENCE, "a worker"))
            prepare(slow_config, client)

    begin = time.monotonic()
    with pytest.raises(ClusterError, match="the door is closed"):
        run()
    assert time.monotonic() - begin < slow_config.store.worker_timeout, "it did not wait for that"

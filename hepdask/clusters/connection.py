"""From settings to a client: a cluster that is started, or attached to, for as long as it is needed."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dask
from distributed import Client, LocalCluster
from distributed.deploy.spec import SpecCluster
from distributed.security import Security

from hepdask import logs
from hepdask.clusters import connection_file as connection_files
from hepdask.clusters.kinds import Settings, load_cluster
from hepdask.clusters.ports import free_port
from hepdask.clusters.settings import GPU, Attached, BatchSettings, Local
from hepdask.clusters.tls import make_certificate, security_of
from hepdask.clusters.worker_imports import safe_path
from hepdask.distributed.placement import Offer
from hepdask.errors import ClusterError, ConfigError
from hepdask.monitoring import metrics
from hepdask.monitoring.answers import answer
from hepdask.monitoring.dashboard_link import READ_ONLY, dashboard_link, page_link

if TYPE_CHECKING:
    from hepdask.clusters.batch_cluster import BatchCluster

logger = logging.getLogger(__name__)

_TICK = 0.2


def start(settings: Settings) -> LocalCluster | BatchCluster:
    """Start a cluster; a local one has its workers when this returns, one of batch jobs has asked for them."""
    logs.show()
    logs.settle()
    if not isinstance(settings, Attached) and not settings.tls:
        logger.warning(
            "tls is off: anyone who reaches a port of this cluster, also on this machine, can run code as you"
        )
    # without the environment of the workers, which may be private
    logger.debug("starting a cluster: %s", settings.model_dump(exclude={"environment"}))
    if isinstance(settings, BatchSettings):
        from hepdask.clusters.batch_cluster import BatchCluster

        return BatchCluster(settings)
    if isinstance(settings, Attached):
        raise ConfigError(f"{settings.address}: a cluster that is already running; give a name or a file")
    story = logs.wants_whole_story()
    options: dict[str, Any] = {
        "threads_per_worker": settings.threads,
        "memory_limit": settings.memory_limit,
        "host": settings.host,
        "dashboard_address": f"{settings.host}:{free_port(settings.host, settings.dashboard_port)}",
        "security": security_of(make_certificate()) if settings.tls else None,
        "silence_logs": logging.INFO if story else logging.CRITICAL,
        "preload": ["hepdask.clusters.worker_preload", *([] if story else ["hepdask.logs"])],
    }
    with (
        safe_path(),
        dask.config.set({**READ_ONLY, "distributed.comm.timeouts.connect": f"{settings.start_timeout}s"}),
    ):
        if isinstance(settings, GPU):
            from hepdask.clusters.local_gpu import start_gpu

            return start_gpu(settings, **options)
        return LocalCluster(n_workers=settings.workers, **options)


@contextmanager
def connect(
    cluster: str | Mapping[str, Any], client: Client | None = None, wait: bool = True
) -> Iterator[Client]:
    """Give a client: the one at hand, or of a cluster that is started, or attached to, for the block.

    Parameters
    ----------
    cluster : str or mapping
        What `load_cluster` takes.
    client : distributed.Client, optional
        Given back as it is.
    wait : bool
        On a batch farm, for the first worker; who does not wait here calls `wait_for_workers`.

    Raises
    ------
    ClusterError
        The scheduler does not answer; or the jobs of a farm are rejected, can never start or fail one after
        another: the batch system's answer or the end of the last log is in the message. Also raised in place of
        whatever comes out of the block when that happens later.
    """
    if client is not None:
        yield client
        return
    settings = load_cluster(cluster)
    if isinstance(settings, Attached):
        logs.show()
        logs.settle()
        logger.debug("attaching to %s, for at most %g s", settings.address, settings.start_timeout)
        with _attach(settings) as attached:
            _show(attached)
            yield attached
    elif isinstance(settings, Local | GPU):
        with start(settings) as started, Client(started) as own:
            _show(own)
            yield own
    else:
        with start(settings) as farm, _explained(farm), Client(farm) as own:
            _show(own)
            if wait:
                wait_for_workers(farm, 1)
            yield own


def _show(client: Client) -> None:
    """Let the dashboard have hepdask's page, and say where both are."""
    metrics.serve(client)
    link, page = dashboard_link(client), page_link(client)
    logger.info(f"dashboard: {link or 'none, the scheduler started without (is bokeh installed there?)'}")
    if page:
        logger.info(f"events, MB/s, losses: {page}")


def _attach(settings: Attached) -> Client:
    try:
        return Client(settings.address, timeout=f"{settings.start_timeout:g}s", security=_security(settings))
    except ValueError as error:
        raise ConfigError(
            f"cluster: {settings.address} is not the address of a scheduler ({error})"
        ) from None
    except Exception as error:  # whatever a stranger at that address answers
        hint = (
            "; a cluster of hepdask has an address with tls://" if settings.address.startswith("tcp:") else ""
        )
        raise ClusterError(
            f"{settings.address}: no scheduler answers there, or it does not admit you ({error}); is the cluster "
            f"up?{hint}"
        ) from None


def _security(settings: Attached) -> Security | None:
    """Find what lets this user into a cluster."""
    certificate = settings.certificate
    if certificate is None and settings.address.startswith("tls:"):
        if found := connection_files.find(settings.address):
            certificate = load_cluster(str(found)).certificate  # type: ignore[union-attr]
        elif dask.config.get("distributed.comm.tls.ca-file") is None:  # else Dask knows
            raise ClusterError(
                f"{settings.address}: admits only holders of its certificate, and you have no connection file for it "
                f"in {connection_files.folders()}; start it with hepdask cluster start --connection FILE, and use "
                "--cluster FILE"
            )
    if certificate is None:
        return None
    try:
        security = security_of(certificate)
        security.get_connection_args("client")
    except (OSError, ValueError) as error:
        shown = "the certificate" if "\n" in certificate else certificate
        raise ClusterError(
            f"{settings.address}: {shown} cannot be used ({error}); is the cluster that made it up?"
        ) from None
    return security


@contextmanager
def _explained(farm: BatchCluster) -> Iterator[None]:
    """Where the cluster was given up, say so instead of what came of it."""
    try:
        yield
    except Exception as error:
        if farm.job_monitor.error is not None and farm.job_monitor.error is not error:
            raise farm.job_monitor.error from error
        raise


def wait_for_workers(farm: BatchCluster, workers: int) -> None:
    """Wait until so many workers are connected, for at most `start_timeout`.

    Raises
    ------
    ClusterError
        They are not, or never will be.
    """
    timeout = farm.settings.start_timeout
    deadline = time.monotonic() + timeout
    while (there := len(farm.running_scheduler.workers)) < workers:
        if error := farm.job_monitor.verdict():
            raise error
        if time.monotonic() > deadline:
            raise ClusterError(
                f"{there} of {workers} workers after {timeout:g} s (start_timeout); jobs: {farm.job_monitor.summary()}"
            )
        time.sleep(_TICK)


@contextmanager
def reserved(
    client: Client, ranks: int, cores_per_rank: int, gpus_per_rank: int | None = None
) -> Iterator[None]:
    """Keep a fixed number of workers, enough for ranks that train together, and wait for them.

    Clusters that are not made of batch jobs are left as they are.

    Raises
    ------
    ClusterError
        A worker is too small for a rank, or the workers do not come.
    """
    farm = getattr(client, "cluster", None)
    settings = getattr(farm, "settings", None)
    if farm is None or not isinstance(settings, BatchSettings):
        yield
        return
    if cores_per_rank > settings.threads:
        raise ClusterError(
            f"a rank takes {cores_per_rank} cores and a worker has {settings.threads}: raise `cores` of the "
            "cluster's jobs, or lower training.cores_per_rank"
        )
    slots = Offer("", "", "", settings.threads, settings.gpus_of_worker).slots(cores_per_rank, gpus_per_rank)
    if not slots:
        raise ClusterError(
            f"a rank takes {gpus_per_rank} GPU(s) and a worker has {settings.gpus_of_worker}: raise `gpus` of the "
            "cluster's jobs, or lower training.gpus_per_rank"
        )
    workers = math.ceil(ranks / slots)
    farm.hold(workers)
    try:
        wait_for_workers(farm, workers)
        yield
    finally:
        if farm.job_monitor.error is None:
            farm.hold()


@contextmanager
def standing(
    cluster: str, connection_file: str | None = None
) -> Iterator[tuple[dict[str, Any], Callable[[], None]]]:
    """Start a cluster that others attach to.

    Parameters
    ----------
    cluster : str
        What `load_cluster` takes.
    connection_file : str, optional
        File to write, which `load_cluster` takes; only its owner can read it, and it goes with the cluster. The same
        user needs none on the same machine: the address is enough.

    Yields
    ------
    dict
        Address, dashboard and number of workers.
    callable
        Waits for as long as the cluster is up; raises ClusterError when it was given up.
    """
    with start(load_cluster(cluster)) as started, announced(started):
        monitor = getattr(started, "job_monitor", None)
        if monitor is not None:
            wait_for_workers(started, 1)
        facts = {
            "address": started.scheduler_address,
            "dashboard": dashboard_link(started),
            "workers": len(started.scheduler_info["workers"]),
        }
        path = Path(connection_file) if connection_file else None
        if path is not None:
            connection_files.write(path, facts["address"], started.security.tls_ca_file)

        def still_up() -> None:
            while monitor is None or monitor.error is None:
                time.sleep(_TICK)
            raise monitor.error

        try:
            yield facts, still_up
        finally:
            if path is not None:
                path.unlink(missing_ok=True)


def announced(cluster: SpecCluster) -> AbstractContextManager[None]:
    """Let the same user attach by the address alone, for as long as the block lasts."""
    return connection_files.announced(cluster.scheduler_address, cluster.security.tls_ca_file)  # type: ignore[union-attr]


def cpu_seconds(client: Client) -> float:
    """CPU time that the workers have used so far [s]; those that are gone do not count."""
    used = answer(client, lambda: client.run(time.process_time, on_error="ignore"))
    return float(sum(used.values()))

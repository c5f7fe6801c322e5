"""Dask clusters from a name, a file, settings, or the address of a running scheduler."""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import dask
from distributed import Client, LocalCluster
from pydantic import BaseModel, ConfigDict, Field

from hepdask.config import Count, Positive, read_document, validate
from hepdask.errors import ClusterError, ConfigError
from hepdask.progress import say

_SHIPPED = (Path(__file__).parent / "configs", Path(__file__).parent.parent / "configs")


class Local(BaseModel):
    """Worker processes on this machine."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, alias_generator=lambda name: name.replace("_", "-")
    )

    kind: Literal["local"] = Field("local", description="worker processes on this machine")
    workers: Count | None = Field(None, description="worker processes; default one a core")
    threads: Count = Field(1, description="threads of each worker")
    memory_limit: str = Field("auto", description="memory of each worker, as Dask writes it")
    host: str = Field("127.0.0.1", description="address that scheduler, workers and dashboard listen on")
    dashboard_port: int = Field(
        8787, ge=0, description="port of the dashboard; another free one if it is taken"
    )
    start_timeout: Positive = Field(60.0, description="longest wait for the workers to start [s]")


def load_cluster(cluster: str | Mapping[str, Any]) -> Local | str:
    """Resolve what a configuration or ``--cluster`` says.

    Parameters
    ----------
    cluster : str or mapping
        A name under ``configs/clusters/``, a YAML file, ``tcp://…`` or ``tls://…``, or the settings.

    Returns
    -------
    Local or str
        Settings of a cluster to start, or the address of one to attach to.

    Raises
    ------
    ConfigError
        There is no such cluster, or a setting is wrong.
    """
    if isinstance(cluster, Mapping):
        return validate(Local, dict(cluster), "cluster")
    if re.match(r"^[a-z]+://", cluster):
        return cluster
    candidates = [Path(cluster)] if cluster.endswith((".yaml", ".yml")) else [
        folder / "clusters" / f"{cluster}.yaml" for folder in (Path("configs"), *_SHIPPED)
    ]  # fmt: skip
    for path in candidates:
        if path.is_file():
            return validate(Local, read_document(path), str(path))
    known = sorted(
        {
            path.stem
            for folder in (Path("configs"), *_SHIPPED)
            for path in (folder / "clusters").glob("*.yaml")
        }
    )
    raise ConfigError(f"cluster: {cluster!r} is neither a file, an address, nor one of: {', '.join(known)}")


def start(settings: Local) -> LocalCluster:
    """Start a cluster and wait for its workers."""
    with dask.config.set({"distributed.comm.timeouts.connect": f"{settings.start_timeout}s"}):
        return LocalCluster(
            n_workers=settings.workers,
            threads_per_worker=settings.threads,
            memory_limit=settings.memory_limit,
            host=settings.host,
            dashboard_address=f"{settings.host}:{_free(settings.host, settings.dashboard_port)}",
            silence_logs=40,
            preload=["hepdask.interrupt"],
        )


def _free(host: str, port: int) -> int:
    """Give the port where nothing listens on it, 0 (any) otherwise."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return 0
        return port


@contextmanager
def connect(cluster: str | Mapping[str, Any], client: Client | None = None) -> Iterator[Client]:
    """Give a client: the one at hand, or of a cluster that is started, or attached to, for the block.

    Raises
    ------
    ClusterError
        The scheduler does not answer.
    """
    if client is not None:
        yield client
        return
    settings = load_cluster(cluster)
    if isinstance(settings, str):
        try:
            attached = Client(settings, timeout="20s")
        except ValueError as error:
            raise ConfigError(f"cluster: {settings} is not the address of a scheduler ({error})") from None
        except Exception as error:  # whatever a stranger at that address answers
            raise ClusterError(
                f"{settings}: no scheduler answers there ({error}); is the cluster up?"
            ) from None
        with attached:
            say(f"dashboard: {attached.dashboard_link}")
            yield attached
        return
    with start(settings) as started, Client(started) as own:
        say(f"dashboard: {own.dashboard_link}")
        yield own


def cpu_seconds(client: Client) -> float:
    """CPU time that the workers have used so far [s]; those that are gone do not count."""
    return float(sum(client.run(time.process_time, on_error="ignore").values()))

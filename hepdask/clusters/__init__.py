"""Dask clusters from a name, a file, settings, or the address of a running scheduler."""

from hepdask.clusters.connect import (
    announced,
    connect,
    cpu_seconds,
    reserved,
    standing,
    start,
    wait_for_workers,
)
from hepdask.clusters.dashboard import dashboard_link, page_link
from hepdask.clusters.settings import GPU, HTCondor, Slurm, load_cluster
from hepdask.clusters.versions import differences

__all__ = [
    "GPU", "HTCondor", "Slurm", "announced", "connect", "cpu_seconds", "dashboard_link", "differences",
    "load_cluster", "page_link", "reserved", "standing", "start", "wait_for_workers",
]  # fmt: skip

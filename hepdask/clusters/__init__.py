"""Dask clusters from a name, a file, settings, or the address of a running scheduler."""

from hepdask._face import listing
from hepdask.clusters.connection import (
    announced,
    connect,
    cpu_seconds,
    reserved,
    standing,
    start,
    wait_for_workers,
)
from hepdask.clusters.htcondor import HTCondor
from hepdask.clusters.kinds import BATCH_KINDS, load_cluster
from hepdask.clusters.settings import GPU, BatchSettings
from hepdask.clusters.slurm import Slurm
from hepdask.clusters.version_check import differences

__all__ = [
    "BATCH_KINDS", "GPU", "BatchSettings", "HTCondor", "Slurm", "announced", "connect", "cpu_seconds", "differences",
    "load_cluster", "reserved", "standing", "start", "wait_for_workers",
]  # fmt: skip

__dir__ = listing(__name__, __all__)

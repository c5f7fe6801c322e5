"""Dask clusters from a name, a file, settings, or the address of a running scheduler."""

from hepdask.clusters.connect import connect, cpu_seconds, reserved, standing, start
from hepdask.clusters.settings import HTCondor, Slurm, load_cluster

__all__ = ["HTCondor", "Slurm", "connect", "cpu_seconds", "load_cluster", "reserved", "standing", "start"]

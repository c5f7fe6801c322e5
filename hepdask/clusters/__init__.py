"""Dask clusters from a name, a file, settings, or the address of a running scheduler."""

from hepdask.clusters.connect import connect, cpu_seconds, reserved, start
from hepdask.clusters.settings import load_cluster

__all__ = ["connect", "cpu_seconds", "load_cluster", "reserved", "start"]

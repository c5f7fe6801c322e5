"""Run any function as the ranks of a Horovod job on the workers of a Dask cluster.

:func:`run` is all that a driver needs. Inside the ranks, :mod:`hepdask.distributed.keras` makes a Keras 3
optimizer average its gradients, and :mod:`hepdask.distributed.collective` holds the few collectives that
work the same with one rank and no Horovod at all.
"""

from hepdask.distributed.errors import HorovodMissing, NotEnoughSlots, NotSynchronised, RankFailed
from hepdask.distributed.launch import run

__all__ = ["HorovodMissing", "NotEnoughSlots", "NotSynchronised", "RankFailed", "run"]

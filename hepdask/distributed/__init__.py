"""Run any function as the ranks of a Horovod job on the workers of a Dask cluster.

`run` is all that a driver needs, or `submit` to leave it running; `RankOptions` says how, and a
`Checkpoint` lets a run go on after a failure. Inside the ranks, `hepdask.distributed.keras` makes a Keras 3
optimizer average its gradients, and `hepdask.distributed.collective` holds the few collectives that work the same
with one rank and no Horovod at all.
"""

from hepdask.distributed.checkpoint import Checkpoint, Saved
from hepdask.distributed.errors import (
    CannotListen,
    CheckpointDamaged,
    DistributedError,
    HorovodMissing,
    NotEnoughSlots,
    NotSynchronised,
    RankFailed,
)
from hepdask.distributed.future import RunFuture
from hepdask.distributed.launch import run, submit
from hepdask.distributed.options import RankOptions

__all__ = [
    "CannotListen",
    "Checkpoint",
    "CheckpointDamaged",
    "DistributedError",
    "HorovodMissing",
    "NotEnoughSlots",
    "NotSynchronised",
    "RankFailed",
    "RankOptions",
    "RunFuture",
    "Saved",
    "run",
    "submit",
]


def __dir__() -> list[str]:
    return sorted([*__all__, *(name for name in globals() if name.startswith("__"))])

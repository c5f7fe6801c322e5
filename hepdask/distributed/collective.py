"""The few collectives a rank needs; with one rank, or without Horovod, they do nothing and need nothing."""

from __future__ import annotations

import functools
import os
import sys
from typing import Any, Literal

import numpy as np

from hepdask.distributed import local_allreduce

Reduction = Literal["average", "sum"]


def _horovod() -> Any:
    """Return Horovod where it was initialised with more than one rank, else None.

    A rank has imported it before the user's function starts; importing it here would load TensorFlow into
    processes that are no ranks.

    Raises
    ------
    RuntimeError
        This is one of several ranks, and Horovod is not up: without a word, each would go on by itself.
    """
    hvd = sys.modules.get("horovod.tensorflow")
    if hvd is not None and hvd.is_initialized():
        return hvd if hvd.size() > 1 else None
    if int(os.environ.get("HOROVOD_SIZE", "1")) > 1:
        raise RuntimeError(
            "this is one of several ranks, but Horovod is not running in it: it was shut down, or the backend is "
            "tf.distribute, or this is a process that a rank has started"
        )
    return None


@functools.cache
def _neighbours(hvd: Any) -> local_allreduce.Neighbours | None:
    """Connect ranks that are all on one host, the first time that it is of use."""
    return local_allreduce.meet(hvd)


def rank() -> int:
    """Return the number of this rank, from 0."""
    hvd = _horovod()
    return hvd.rank() if hvd else 0


def size() -> int:
    """Return the number of ranks."""
    hvd = _horovod()
    return hvd.size() if hvd else 1


def local_rank() -> int:
    """Return the number of this rank among those of its host."""
    hvd = _horovod()
    return hvd.local_rank() if hvd else 0


def allreduce(tensor: Any, op: Reduction = "average", name: str | None = None) -> Any:
    """Return the average or the sum of a tensor over all ranks.

    Parameters
    ----------
    tensor : tensor or array
        Of the same shape and type on all ranks. Small arrays of ranks that are all on one host go from one to the
        other directly (`local_allreduce`); all others, and tensors, by Horovod's ring.
    op : "average" or "sum"
        How to combine.
    name : str, optional
        Tells apart reductions that are under way at the same time; the same on all ranks.
    """
    hvd = _horovod()
    if hvd is None:
        return tensor
    if (
        isinstance(tensor, np.ndarray)
        and tensor.nbytes <= local_allreduce.MOST_BYTES
        and (here := _neighbours(hvd))
    ):
        return here.sum(tensor) if op == "sum" else here.sum(tensor) / hvd.size()
    return hvd.allreduce(tensor, name=name, op={"average": hvd.Average, "sum": hvd.Sum}[op])


def broadcast(value: Any, root: int = 0) -> Any:
    """Return the value that rank ``root`` has, any object that can be pickled, on all ranks."""
    hvd = _horovod()
    return hvd.broadcast_object(value, root_rank=root) if hvd else value


def gather(value: Any) -> list[Any]:
    """Return the values of all ranks, any objects that can be pickled, in rank order on all ranks."""
    hvd = _horovod()
    return hvd.allgather_object(value) if hvd else [value]

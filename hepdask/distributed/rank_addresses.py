"""Where the other ranks are, under ``backend="tf.distribute"``: for libraries that have collectives of their own."""

from __future__ import annotations

import json
import os

from hepdask.distributed.rank_process import meet


def rank() -> int:
    """Return the number of this rank, from 0."""
    return int(os.environ["HOROVOD_RANK"])


def size() -> int:
    """Return the number of ranks."""
    return int(os.environ["HOROVOD_SIZE"])


def addresses() -> list[str]:
    """Return ``host:port`` of each rank, in rank order: where it may listen, and the others can reach it.

    Raises
    ------
    RuntimeError
        This process is no rank of a run with ``backend="tf.distribute"``.
    """
    try:
        return json.loads(os.environ["TF_CONFIG"])["cluster"]["worker"]
    except KeyError:
        raise RuntimeError(
            'ranks know the addresses of the others only with backend="tf.distribute"'
        ) from None


def barrier(name: str, timeout: float = float("inf")) -> None:
    """Return when all ranks have come to the barrier of this name, which can be used once.

    Parameters
    ----------
    name : str
        Letters and digits.
    timeout : float
        Most seconds to wait; by default only the driver ends it, when another rank fails or is silent for too long.

    Raises
    ------
    TimeoutError
        Some rank has not come in time.
    """
    if size() > 1:
        meet(name, rank(), size(), timeout)

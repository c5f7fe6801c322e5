"""Which rank runs on which worker: a pure function of what the workers offer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Offer:
    """A worker as the scheduler knows it.

    Attributes
    ----------
    address : str
        Where Dask reaches it.
    identity : str
        Unique to the worker process: a restarted worker with the same address has another one.
    host : str
        IP address of its machine, as the other workers see it.
    threads : int
        Number of threads it computes with.
    gpus : int
        Number of GPUs it has, by its Dask resource ``GPU``.
    """

    address: str
    identity: str
    host: str
    threads: int
    gpus: int = 0

    def each(self, gpus_per_rank: int | None) -> int | None:
        """Return how many GPUs a rank gets here: as asked for, else one where there are any; None for no share."""
        return gpus_per_rank if gpus_per_rank is not None else (1 if self.gpus else None)

    def slots(self, cores_per_rank: int, gpus_per_rank: int | None = None) -> int:
        """Return how many ranks of so many cores and GPUs fit."""
        slots, each = self.threads // cores_per_rank, self.each(gpus_per_rank)
        return min(slots, self.gpus // each) if each else slots


@dataclass(frozen=True)
class Slot:
    """The place of one rank, and its coordinates in Horovod's terms.

    ``local`` counts the ranks of one host; ``cross`` counts the hosts that have a rank of this local rank;
    ``worker_rank`` counts the ranks of one worker. ``gpus`` is how many GPUs the rank gets for itself; None where it
    sees what its worker sees.
    """

    address: str
    identity: str
    host: str
    rank: int
    size: int
    local_rank: int
    local_size: int
    cross_rank: int
    cross_size: int
    worker_rank: int = 0
    gpus: int | None = None

    def environment(self) -> dict[str, str]:
        """Return the variables by which Horovod learns where it is."""
        names = ("rank", "size", "local_rank", "local_size", "cross_rank", "cross_size")
        found = {f"HOROVOD_{name.upper()}": str(getattr(self, name)) for name in names}
        return {"HOROVOD_HOSTNAME": self.host, **found}


def place(
    offers: Sequence[Offer], ranks: int, cores_per_rank: int = 1, gpus_per_rank: int | None = None
) -> list[Slot] | None:
    """Assign ranks to workers, on as few hosts and workers as possible.

    Ranks are numbered host by host, so that neighbours in Horovod's ring share a machine where they can.
    The hosts with most room come first; otherwise the order of ``offers`` is kept.

    Parameters
    ----------
    offers : sequence of Offer
        The workers that may be used, in order of preference.
    ranks : int
        Number of ranks, at least 1.
    cores_per_rank : int
        Cores of each rank; a worker with fewer threads offers no slot.
    gpus_per_rank : int, optional
        GPUs of each rank; a worker with fewer offers no slot. By default one on workers that have any.

    Returns
    -------
    list of Slot or None
        In rank order; None if the slots do not suffice.
    """
    room: Counter[str] = Counter()
    for offer in offers:
        room[offer.host] += offer.slots(cores_per_rank, gpus_per_rank)
    hosts = {host: number for number, (host, _) in enumerate(room.most_common())}
    roomiest_first = sorted(offers, key=lambda offer: hosts[offer.host])
    chosen = [o for o in roomiest_first for _ in range(o.slots(cores_per_rank, gpus_per_rank))][:ranks]
    if len(chosen) < ranks:
        return None

    local_sizes = Counter(offer.host for offer in chosen)
    at_local_rank: Counter[int] = Counter()  # hosts seen so far with a rank of this local rank
    locals_seen: Counter[str] = Counter()
    workers_seen: Counter[str] = Counter()
    placed = []
    for rank, offer in enumerate(chosen):
        local_rank = locals_seen[offer.host]
        placed.append(
            Slot(
                address=offer.address,
                identity=offer.identity,
                host=offer.host,
                rank=rank,
                size=ranks,
                local_rank=local_rank,
                local_size=local_sizes[offer.host],
                cross_rank=at_local_rank[local_rank],
                cross_size=sum(size > local_rank for size in local_sizes.values()),
                worker_rank=workers_seen[offer.address],
                gpus=offer.each(gpus_per_rank),
            )
        )
        locals_seen[offer.host] += 1
        workers_seen[offer.address] += 1
        at_local_rank[local_rank] += 1
    return placed

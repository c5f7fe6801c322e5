"""What a run holds on the scheduler: its workers, its rendezvous, and a watch on who leaves.

All of it lives in one scheduler plugin and goes when the run ends or when the client that started it is gone,
so that nothing stays locked or listening after a driver was killed.
"""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from distributed import Scheduler
from distributed.comm.addressing import get_address_host
from distributed.diagnostics.plugin import SchedulerPlugin

from hepdask.distributed.network import address_of
from hepdask.distributed.options import RankOptions
from hepdask.distributed.placement import Offer, Slot, place
from hepdask.distributed.rank_events import WorkerLost
from hepdask.distributed.rendezvous import Address, Rendezvous


@dataclass(frozen=True)
class Granted:
    """The slots of a run, in rank order, and its rendezvous (None for a single rank)."""

    slots: list[Slot]
    rendezvous: Address | None


@dataclass(frozen=True)
class Refused:
    """Too few slots: those that are free, and those on workers that another run holds, by worker."""

    free: dict[str, int]
    taken: dict[str, int]


@dataclass(frozen=True)
class Request:
    """What a run asks of the scheduler.

    Attributes
    ----------
    run : str
        Name of the run: of its lease, of its lock, and of the topic its events go under.
    client : str
        Identity of the client that owns it.
    ranks, fewest : int
        As many slots as the first if there are, at least as many as the second.
    options : RankOptions
        Say which threads and GPUs of a worker a slot takes, and where the rendezvous listens.
    avoid : tuple of str
        Identities of workers that are not to be used.
    """

    run: str
    client: str
    ranks: int
    fewest: int
    options: RankOptions
    avoid: tuple[str, ...] = ()


class Lease(SchedulerPlugin):
    """Locks on workers and a rendezvous, held for one run.

    The locks are those of ``distributed.MultiLock`` under the workers' addresses: the ones that
    ``xgboost.dask`` takes, so that the two do not start on the same workers.
    """

    def __init__(self, scheduler: Scheduler, run: str, client: str, slots: Sequence[Slot]) -> None:
        self.name = run
        self.scheduler = scheduler
        self.client = client
        self.workers = {slot.address: slot.identity for slot in slots}
        self.rendezvous: Rendezvous | None = None

    def remove_worker(self, scheduler: Scheduler, worker: str, **kwargs: Any) -> None:
        """Tell the driver that a worker of the run is gone."""
        if worker in self.workers:
            scheduler.log_event(self.name, pickle.dumps(WorkerLost(worker)))

    def remove_client(self, scheduler: Scheduler, client: str) -> None:
        """End with the driver."""
        if client == self.client:
            self.end()

    async def close(self) -> None:
        """End with the scheduler."""
        self.end()

    def end(self) -> None:
        """Give everything back; calling it again does nothing."""
        if self.scheduler.plugins.pop(self.name, None) is None:
            return
        if self.rendezvous is not None:
            self.rendezvous.close()
        self.scheduler.extensions["multi_locks"].release(id=self.name)
        self.scheduler._broker.truncate(self.name)


async def take_lease(request: Request, dask_scheduler: Scheduler) -> Granted | Refused:
    """Find slots for a run and lock them, all or none; runs on the scheduler.

    Parameters
    ----------
    request : Request
        What is wanted.
    dask_scheduler : Scheduler
        Given by Dask.

    Returns
    -------
    Granted or Refused
        At once: waiting is the caller's.

    Raises
    ------
    CannotListen
        If the rendezvous finds no port, or the host has no such interface.
    """
    scheduler = dask_scheduler
    locks = scheduler.extensions["multi_locks"]
    free: list[Offer] = []
    taken: list[Offer] = []
    for worker in sorted(scheduler.running, key=lambda w: (len(w.processing), w.address)):
        host, gpus = get_address_host(worker.address), int(worker.resources.get("GPU", 0))
        offer = Offer(worker.address, worker.server_id, host, worker.nthreads, gpus)
        if offer.identity not in request.avoid:
            (taken if locks.locks.get(worker.address) else free).append(offer)
    sizes = range(request.ranks, request.fewest - 1, -1)
    options = request.options
    each = (options.cores_per_rank, options.gpus_per_rank)
    slots = next((found for size in sizes if (found := place(free, size, *each))), None)
    if slots is None:
        return Refused(_count(free, *each), _count(taken, *each))

    # Nothing was awaited since the locks were looked at, so they are still free.
    run, client = request.run, request.client
    lease = Lease(scheduler, run, client, slots)
    names = list(lease.workers)
    await locks.acquire(locks=names, id=run, timeout=0, num_locks=len(names))
    scheduler.add_plugin(lease, name=run)
    if client not in scheduler.clients:  # it left while we waited
        lease.end()
        return Refused({}, {})
    scheduler.subscribe_topic(run, client)
    if len(slots) == 1:
        return Granted(slots, None)
    try:
        lease.rendezvous = Rendezvous(_host(scheduler, options.interface), options.port_range)
    except BaseException:
        lease.end()
        raise
    return Granted(slots, lease.rendezvous.address)


def _count(offers: Sequence[Offer], cores_per_rank: int, gpus_per_rank: int | None) -> dict[str, int]:
    """Return the slots of each worker that has any."""
    return {offer.address: slots for offer in offers if (slots := offer.slots(cores_per_rank, gpus_per_rank))}


def _host(scheduler: Scheduler, interface: str | None) -> str:
    """Return the address on which the rendezvous is to listen."""
    return get_address_host(scheduler.address) if interface is None else address_of(interface)


async def end_lease(run: str, dask_scheduler: Scheduler) -> None:
    """Give back what a run holds; nothing happens if it holds nothing. Runs on the scheduler."""
    lease = dask_scheduler.plugins.get(run)
    if isinstance(lease, Lease):
        lease.end()

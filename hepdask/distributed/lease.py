"""What a run holds on the scheduler: its workers, its rendezvous, and a watch on who leaves.

All of it lives in one scheduler plugin and goes when the run ends or when the client that started it is gone,
so that nothing stays locked or listening after a driver was killed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from distributed import Scheduler
from distributed.comm.addressing import get_address_host
from distributed.diagnostics.plugin import SchedulerPlugin

from hepdask.distributed.placement import Offer, Slot, place
from hepdask.distributed.rendezvous import Address, Rendezvous


@dataclass(frozen=True)
class Granted:
    """The slots of a run, in rank order, and its rendezvous (None for a single rank)."""

    slots: list[Slot]
    rendezvous: Address | None


@dataclass(frozen=True)
class Refused:
    """Too few slots: how many are free, and how many are on workers that another run holds."""

    free: int
    taken: int


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
            scheduler.log_event(self.name, {"kind": "lost", "worker": worker})

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


async def take_lease(
    run: str,
    client: str,
    ranks: int,
    cores_per_rank: int,
    port_range: tuple[int, int] | None,
    dask_scheduler: Scheduler,
) -> Granted | Refused:
    """Find slots for a run and lock them, all or none; runs on the scheduler.

    Parameters
    ----------
    run : str
        Name of the run: of its lease, of its lock, and of the topic its events go under.
    client : str
        Identity of the client that owns it.
    ranks, cores_per_rank : int
        What is wanted.
    port_range : (int, int) or None
        Ports the rendezvous may use.
    dask_scheduler : Scheduler
        Given by Dask.

    Returns
    -------
    Granted or Refused
        At once: waiting is the caller's.

    Raises
    ------
    OSError
        If the rendezvous finds no port.
    """
    scheduler = dask_scheduler
    locks = scheduler.extensions["multi_locks"]
    free, taken = [], 0
    for worker in sorted(scheduler.running, key=lambda w: (len(w.processing), w.address)):
        host = get_address_host(worker.address)
        offer = Offer(worker.address, worker.server_id, host, worker.nthreads)
        if locks.locks.get(worker.address):
            taken += offer.slots(cores_per_rank)
        else:
            free.append(offer)
    slots = place(free, ranks, cores_per_rank)
    if slots is None:
        return Refused(sum(offer.slots(cores_per_rank) for offer in free), taken)

    # Nothing was awaited since the locks were looked at, so they are still free.
    lease = Lease(scheduler, run, client, slots)
    names = list(lease.workers)
    await locks.acquire(locks=names, id=run, timeout=0, num_locks=len(names))
    scheduler.add_plugin(lease, name=run)
    if client not in scheduler.clients:  # it left while we waited
        lease.end()
        return Refused(0, 0)
    scheduler.subscribe_topic(run, client)
    if ranks == 1:
        return Granted(slots, None)
    try:
        lease.rendezvous = Rendezvous(get_address_host(scheduler.address), port_range)
    except BaseException:
        lease.end()
        raise
    return Granted(slots, lease.rendezvous.address)


async def end_lease(run: str, dask_scheduler: Scheduler) -> None:
    """Give back what a run holds; nothing happens if it holds nothing. Runs on the scheduler."""
    lease = dask_scheduler.plugins.get(run)
    if isinstance(lease, Lease):
        lease.end()

"""What tests of ranks share: finding their processes, waiting with a bound, and small functions that ranks run.

Loading TensorFlow costs a rank ten CPU seconds: the fixture ``stub`` is a Horovod that is always ready.
"""

from __future__ import annotations

import os
import sys
import threading
import time

import cloudpickle
import psutil

from helpers.waiting import until
from hepdask.distributed.lease import Lease

BOUND = 10.0  # seconds in which a fault must have become an error, with no process left

# What the ranks run travels by value: they need not import this module and all it imports.
for _module in (__name__, until.__module__):
    cloudpickle.register_pickle_by_value(sys.modules[_module])


def marked(name):
    """Return the processes that have a mark in their environment."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("TEST_MARK") == name and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            pass
    return found


def held(client):
    """Return the numbers of leases, of locked workers and of rendezvous that listen on the scheduler."""

    def count(dask_scheduler):
        locks = dask_scheduler.extensions["multi_locks"].locks
        leases = [p for p in dask_scheduler.plugins.values() if isinstance(p, Lease)]
        listening = sum(thread.name == "rendezvous" for thread in threading.enumerate())
        return len(leases), sum(bool(users) for users in locks.values()), listening

    return client.run_on_scheduler(count)


class Clock:
    """Runs something in a thread and keeps what it raised and when."""

    def __init__(self, function):
        self.error, self.at, self.result = None, 0.0, None

        def body():
            try:
                self.result = function()
            except BaseException as error:
                self.error = error
            self.at = time.monotonic()

        self.thread = threading.Thread(target=body)
        self.thread.start()

    def error_since(self, start):
        """Return the error, which must have come within the bound after a moment."""
        self.thread.join(120)
        assert not self.thread.is_alive()
        print(f"{type(self.error).__name__} after {self.at - start:.2f} s")
        assert self.at - start < BOUND
        return self.error


def rank():
    return int(os.environ["HOROVOD_RANK"])


def pids(folder, count):
    def written():
        return len([path for path in folder.iterdir() if path.read_text()]) == count

    until(written, 100)
    return {int(path.name): int(path.read_text()) for path in folder.iterdir()}


def worker_of(client, number):
    """Return the address and the process of the worker that runs a rank."""
    name = f"-{number}"
    ((address, _),) = [
        (address, keys)
        for address, keys in client.processing().items()
        if any(str(key).startswith("ranks-") and str(key).endswith(name) for key in keys)
    ]
    return address, client.run(os.getpid, workers=[address])[address]

"""The Dask task that runs one rank: starts its process, passes on what it prints, and ends it when it must.

Everything the driver needs to know while the task runs goes out as `rank_events` under the name of the run. `Ended` is
sent when the process is gone, whether it succeeded, failed or was ended.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from distributed import Worker, get_worker
from distributed.comm.addressing import get_address_host
from distributed.core import Status

from hepdask.distributed import gpu_claims
from hepdask.distributed.errors import signal_name
from hepdask.distributed.network import address_of, interface_of
from hepdask.distributed.options import RankOptions
from hepdask.distributed.placement import Slot
from hepdask.distributed.rank_events import Ended, Event, Failure, Printed, Raised, Started
from hepdask.distributed.rendezvous import Address

WATCH = 0.1  # seconds between two looks at the process
LAST_LINES = 20  # kept to explain a failure
LONGEST_LINE = 1 << 16  # bytes; a longer one is cut in pieces
GENTLE = 2.0  # seconds between SIGTERM and SIGKILL
LARGEST_EXCEPTION = 1 << 20  # bytes; a larger one is reported by its traceback only


@dataclass(frozen=True)
class Job:
    """What all ranks of a run have in common.

    Attributes
    ----------
    run : str
        Name of the run, under which its events go.
    rendezvous : Address or None
        Where the ranks meet; None for a single one.
    wait : float
        Most seconds in which all ranks must be there.
    options : RankOptions
        What was asked for.
    """

    run: str
    rendezvous: Address | None
    wait: float
    options: RankOptions


def run_rank(slot: Slot, job: Job, call: bytes) -> bytes | None:
    """Run one rank to its end, inside a Dask task.

    Parameters
    ----------
    slot : Slot
        Its place; must be this worker.
    job : Job
        What the ranks have in common.
    call : bytes
        Pickled ``(fn, args, kwargs)``.

    Returns
    -------
    bytes or None
        The pickled result, None if there is none: then the event `Ended` said why.
    """
    worker = get_worker()
    key = worker.get_current_task()

    def tell(event: Event) -> None:
        worker.log_event(job.run, pickle.dumps(event))

    def unwanted() -> bool:
        """Whether the task was cancelled (also: its client is gone), or the worker is going down."""
        task = worker.state.tasks.get(key)
        executing = task is not None and task.state in ("executing", "long-running")
        return not executing or worker.status in (Status.closing, Status.closed, Status.failed)

    failure: Failure | None = Failure("was not started")
    result = None
    tell(Started(slot.rank))
    try:
        if worker.id != slot.identity:
            failure = Failure(f"was sent to another worker than the one it was meant for: {worker.address}")
        elif not unwanted():
            result, failure = _run_process(worker, slot, job, call, tell, unwanted)
    except Exception as error:
        failure = Failure(f"could not be run: {type(error).__name__}: {error}")
    finally:
        tell(Ended(slot.rank, time.time(), failure))
    return result


def _run_process(
    worker: Worker,
    slot: Slot,
    job: Job,
    call: bytes,
    tell: Callable[[Event], None],
    unwanted: Callable[[], bool],
) -> tuple[bytes | None, Failure | None]:
    """Return the result, or what is known about the failure."""
    options = job.options
    interface = options.interface or interface_of(get_address_host(worker.address))
    meeting = None
    if options.backend == "tf.distribute":  # there each rank listens by itself, where the others can reach it
        host = (
            get_address_host(worker.address) if options.interface is None else address_of(options.interface)
        )
        meeting = (host, options.port_range)
    elif options.interface is not None:
        address_of(options.interface)  # or say which there are
    with (
        gpu_claims.taken(slot.gpus, slot.worker_rank, job.wait) as gpus,
        tempfile.TemporaryFile() as request,
        tempfile.TemporaryFile() as reply,
    ):
        pickle.dump((sys.path, job.wait, meeting, call), request)
        request.seek(0)
        process = subprocess.Popen(
            [sys.executable, "-P", str(Path(__file__).with_name("rank_process.py"))]
            + [str(file.fileno()) for file in (request, reply)],
            pass_fds=[request.fileno(), reply.fileno()],
            env=rank_environment(dict(os.environ), slot, job, interface, gpus),
            stdin=subprocess.PIPE,  # held open, never written: it closes when this worker dies
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        last: deque[str] = deque(maxlen=LAST_LINES)
        output = _Lines(process.stdout)
        was_ended = False

        def pass_on() -> None:
            if lines := output.take():
                last.extend(lines)
                tell(Printed(slot.rank, lines))

        try:
            while process.poll() is None:
                if unwanted():
                    was_ended = True
                    break
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(WATCH)
                pass_on()
        finally:
            _end(process)
            give_up = time.monotonic() + GENTLE
            while output.reading() and time.monotonic() < give_up:
                pass_on()
                time.sleep(WATCH / 10)
            pass_on()
            process.stdin.close()
        reply.seek(0)
        try:
            answer = pickle.load(reply)
        except Exception:
            answer = {}
    if "result" in answer:
        return answer["result"], None
    return None, _failure(process.returncode, answer, tuple(last), was_ended)


def _failure(code: int, answer: dict[str, Any], last_lines: tuple[str, ...], was_ended: bool) -> Failure:
    raised = tuple(Raised(*one) for one in answer.get("raised", ()))
    exception = answer.get("exception")
    if was_ended:
        reason = "was ended because its task was cancelled or its Dask worker is closing"
    elif raised:
        reason = f"raised {raised[0].headline}"
    elif code < 0:
        reason = f"was killed by {signal_name(-code)}"
    else:
        reason = f"exited with status {code} before its function returned"
    return Failure(
        reason,
        exit_status=code if code >= 0 else None,
        signal=-code if code < 0 else None,
        raised=raised,
        exception=exception if exception and len(exception) <= LARGEST_EXCEPTION else None,
        traceback=answer.get("traceback", ""),
        last_lines=last_lines,
        was_ended=was_ended,
    )


def rank_environment(
    inherited: dict[str, str], slot: Slot, job: Job, interface: str | None, gpus: list[str] | None = None
) -> dict[str, str]:
    """Return the environment of a rank.

    What the caller set in ``env`` comes before what is set here to be quiet and modest, and after what tells
    Horovod where it is. Horovod variables of the worker itself are not passed on.
    """
    cores = str(job.options.cores_per_rank)
    env = {name: value for name, value in inherited.items() if not name.startswith("HOROVOD_")}
    env.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    env |= {"OMP_NUM_THREADS": cores, "TF_NUM_INTRAOP_THREADS": cores, "OMP_WAIT_POLICY": "passive"}
    env |= {"HOROVOD_GLOO_TIMEOUT_SECONDS": "30"}
    if gpus is not None:
        env |= {"CUDA_VISIBLE_DEVICES": ",".join(gpus), "CUDA_DEVICE_ORDER": gpu_claims.ORDER}
    if interface is not None:
        env["HOROVOD_GLOO_IFACE"] = interface
    env |= job.options.env
    env |= {"HOROVOD_CONTROLLER": "gloo", "HOROVOD_CPU_OPERATIONS": "gloo"}
    env |= slot.environment()
    if job.rendezvous is not None:
        env |= job.rendezvous.environment()
    return env


def _end(process: subprocess.Popen[bytes]) -> None:
    """End what is left of a rank and everything it started."""
    assert process.stdin is not None
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GENTLE)
        process.stdin.close()  # then its parent process kills all that is below it
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GENTLE)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


class _Lines:
    """What a process prints, read by a thread; a full queue makes the process wait."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._queue: queue.Queue[str] = queue.Queue(10_000)
        self._thread = threading.Thread(target=self._read, name="rank-output", daemon=True)
        self._thread.start()

    def _read(self) -> None:
        with self._stream:
            while raw := self._stream.readline(LONGEST_LINE):
                # A progress bar rewrites its line: only what is left standing counts.
                self._queue.put(raw.decode(errors="replace").rstrip("\r\n").rsplit("\r", 1)[-1])

    def take(self) -> list[str]:
        """Return the lines read since the last call."""
        lines: list[str] = []
        with contextlib.suppress(queue.Empty):
            while len(lines) < self._queue.maxsize:
                lines.append(self._queue.get_nowait())
        return lines

    def reading(self) -> bool:
        """Whether the other end is still open."""
        return self._thread.is_alive()

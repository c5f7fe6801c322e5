"""The process of one rank: ``python -P rank_process.py CALL_FD REPLY_FD``, started by ``rank_task.py``.

Standard input is a lifeline: nothing is written to it, and when its other end closes, the Dask worker is gone
and the rank must go too. The call is read from one inherited file, the reply written to another; standard
output and error belong to the user's function.

Run as a file, with nothing imported from this package, so that a rank starts without loading Dask.
"""

from __future__ import annotations

import contextlib
import ctypes
import http.client
import json
import os
import pickle
import resource
import select
import signal
import socket
import sys
import time
import traceback
from collections.abc import Iterator
from typing import Any

WATCH = 0.1  # seconds between two looks at the child
SWEEP = 5.0  # most seconds to end what a rank has started
LONGEST_MESSAGE = 10_000  # characters of what an exception says
MOST_RAISED = 10  # exceptions that led to one another
LONGEST_TRACEBACK = 100_000  # characters
ADOPT = 36  # PR_SET_CHILD_SUBREAPER of Linux's prctl

MODULE = "hepdask.distributed.rank_process"  # what this file is called where it is imported and not run
HOROVOD_NOT_FOUND = f"{MODULE}.HorovodNotFound"


def guard() -> None:
    """Fork: the child returns and becomes the rank, the parent watches over it and never returns.

    When the rank has ended, or the lifeline is cut, even while the rank holds the interpreter's lock in compiled
    code, the parent kills all that the rank has started. Then it ends the way the child did.
    """
    ctypes.CDLL(None).prctl(
        ADOPT, 1, 0, 0, 0
    )  # what a rank starts stays below here, whatever it does to leave
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the child is the one to be asked
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        return
    lifeline = select.poll()
    lifeline.register(0, 0)  # reports only that the other end was closed
    status = None
    while status is None:
        if lifeline.poll(WATCH * 1000):
            end_descendants()
            os.killpg(0, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            while (reaped := os.waitpid(-1, os.WNOHANG))[0]:  # the adopted ones, too
                if reaped[0] == child:
                    status = reaped[1]
    end_descendants()
    code = os.waitstatus_to_exitcode(status)
    if code < 0:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # the child's own core, if any, is enough
        with contextlib.suppress(OSError, ValueError):  # SIGKILL has no handler to reset
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)


def end_descendants() -> None:
    """Kill what was started below this process, those that left its process group and session included."""
    give_up = time.monotonic() + SWEEP
    while (left := descendants()) and time.monotonic() < give_up:
        for process in left:
            with contextlib.suppress(OSError):
                os.kill(process, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        time.sleep(0.01)


def descendants() -> set[int]:
    """Return the processes below this one that have not ended."""
    parent_of = {}
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError), open(f"/proc/{name}/stat", "rb") as file:
            state, parent = file.read().rpartition(b")")[2].split()[:2]
            if state not in (b"Z", b"X"):
                parent_of[int(name)] = int(parent)
    found = {os.getpid()}
    while more := {process for process, parent in parent_of.items() if parent in found} - found:
        found |= more
    return found - {os.getpid()}


def main(call_fd: int, reply_fd: int) -> int:
    """Run the call and write the reply; return the exit status."""
    os.set_inheritable(reply_fd, False)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    status = 0
    try:
        with open(call_fd, "rb") as file:
            worker_path, wait, meeting, call = pickle.load(file)
        sys.path += [entry for entry in worker_path if entry not in sys.path]
        import cloudpickle

        fn, args, kwargs = cloudpickle.loads(call)
        del call
        with horovod_running(wait) if meeting is None else tensorflow_cluster(wait, *meeting):
            send(reply_fd, {"result": cloudpickle.dumps(fn(*args, **kwargs))})
    except BaseException as error:
        send(reply_fd, describe(error))
        status = 1
        if isinstance(error, SystemExit):
            status = error.code & 0xFF if isinstance(error.code, int) else int(error.code is not None)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):  # closed, or replaced by something else
            stream.flush()
    return status


class HorovodNotFound(ImportError):
    """Horovod cannot be imported and there is more than one rank."""

    __module__ = MODULE


class OthersMissing(TimeoutError):
    """Not all ranks came to a meeting in time."""

    __module__ = MODULE


@contextlib.contextmanager
def horovod_running(wait: float) -> Iterator[None]:
    """Initialise Horovod once every rank has imported it, and shut it down when the body has succeeded.

    A single rank does without Horovod if there is none.
    """
    size = int(os.environ["HOROVOD_SIZE"])
    try:
        import horovod.tensorflow as hvd
    except ImportError as error:
        if size > 1:
            raise HorovodNotFound(str(error)) from error
        yield
        return
    if size > 1:
        meet("ready", int(os.environ["HOROVOD_RANK"]), size, wait)
        warn_of_a_name_without_address()
        rest_on_one_host(size)
    hvd.init()
    yield
    with contextlib.suppress(Exception):  # the result is out; what a peer does now changes nothing
        hvd.shutdown()


def rest_on_one_host(size: int) -> None:
    """Set Horovod's cycle time to ``HEPDASK_CYCLE_TIME_ON_ONE_HOST`` [ms], if given, where all ranks are on one host.

    A thread of Horovod asks those of the other ranks for work once in a cycle, by default each millisecond, and takes
    time from ranks that compute on all cores and talk through ``local_allreduce.py``. Ranks with a GPU talk through
    Horovod.
    """
    cycle = os.environ.get("HEPDASK_CYCLE_TIME_ON_ONE_HOST")
    on_cpus = not os.environ.get("CUDA_VISIBLE_DEVICES")
    if cycle and on_cpus and int(os.environ["HOROVOD_LOCAL_SIZE"]) == size:
        os.environ.setdefault("HOROVOD_CYCLE_TIME", cycle)


def warn_of_a_name_without_address() -> None:
    """Say, before Horovod may crash on it, that nobody knows where this host's name is."""
    try:
        socket.getaddrinfo(socket.gethostname(), None)
    except OSError:
        print(
            f"the name of this host, {socket.gethostname()}, has no address. Horovod 0.28.1 as released crashes on "
            "that; one built by `make horovod` does not, nor does any with the name in /etc/hosts",
            file=sys.stderr,
        )


@contextlib.contextmanager
def tensorflow_cluster(wait: float, host: str, port_range: tuple[int, int] | None) -> Iterator[None]:
    """Tell TensorFlow, in ``TF_CONFIG``, where all ranks listen.

    Each rank looks for a free port and tells the others; TensorFlow takes it when ``fn`` makes its strategy.
    A rank whose ``fn`` is done stays until all are: what it computed last may not have reached the others yet.
    """
    rank, size = int(os.environ["HOROVOD_RANK"]), int(os.environ["HOROVOD_SIZE"])
    with free_port(port_range) as listener:
        mine = f"{host}:{listener.getsockname()[1]}"
        workers = [mine]
        if size > 1:
            ask("PUT", f"listens/{rank}", mine.encode())
            meet("ready", rank, size, wait)
            workers = [ask("GET", f"listens/{other}")[1].decode() for other in range(size)]
    task = {"type": "worker", "index": rank}
    os.environ["TF_CONFIG"] = json.dumps({"cluster": {"worker": workers}, "task": task})
    yield
    if size > 1:
        with contextlib.suppress(ConnectionError):  # nobody listens any more: the run is over
            meet("done", rank, size, float("inf"))  # the driver ends it when a rank fails


def free_port(port_range: tuple[int, int] | None) -> socket.socket:
    """Return a socket bound to a free port, which keeps other ranks of this host from finding the same one.

    Free on all interfaces, since TensorFlow listens on all of them.
    """
    first, last = port_range or (0, 0)
    for port in range(first, last + 1):
        candidate = socket.socket()
        try:
            candidate.bind(("", port))
        except OSError:
            candidate.close()
        else:
            return candidate
    raise OSError(f"no free port for TensorFlow: all of {first}-{last} are taken. Give a wider port_range")


def meet(where: str, rank: int, size: int, wait: float) -> None:
    """Return when all ranks have called this; OthersMissing after ``wait`` seconds.

    At the start: imports take seconds here and a minute on another host. Waiting for them before Horovod starts
    lets its own time-out be short.
    """
    give_up = time.monotonic() + wait
    if rank > 0:
        ask("PUT", f"{where}/{rank}")
        while ask("GET", f"{where}/all")[0] == 404:
            if time.monotonic() > give_up:
                raise OthersMissing(f"the other ranks were not {where} within {wait:.0f} s")
        return
    missing = set(range(1, size))
    while missing:
        missing -= {other for other in sorted(missing) if ask("GET", f"{where}/{other}")[0] == 200}
        if missing and time.monotonic() > give_up:
            raise OthersMissing(f"ranks {sorted(missing)} were not {where} within {wait:.0f} s")
    ask("PUT", f"{where}/all")


def ask(method: str, key: str, value: bytes = b"") -> tuple[int, bytes]:
    """Send one request to the rendezvous; return status and body. See ``rendezvous.py`` for the address."""
    where, secret = os.environ["HOROVOD_GLOO_RENDEZVOUS_ADDR"].split("/")
    port = os.environ["HOROVOD_GLOO_RENDEZVOUS_PORT"]
    connection = http.client.HTTPConnection(where, timeout=30)
    try:
        connection.request(method, f"/{secret}:{port}/{key}", body=value)
        answer = connection.getresponse()
        status, body = answer.status, answer.read()
    except OSError as error:
        raise ConnectionError(
            f"the rendezvous at {where} cannot be reached from this host: {error}"
        ) from error
    finally:
        connection.close()
    if status not in (200, 404):
        raise ConnectionError(f"the rendezvous at {where} answered {status}")
    return status, body


def describe(error: BaseException) -> dict[str, Any]:
    """Return what can be told about an exception on another machine."""
    import cloudpickle

    try:
        exception = cloudpickle.dumps(error)
        cloudpickle.loads(exception)
    except Exception:
        exception = None
    return {
        "raised": [(name_of(type(one)), message_of(one)) for one in leading_to(error)],
        "traceback": shortened("".join(traceback.format_exception(error)), LONGEST_TRACEBACK),
        "exception": exception,
    }


def leading_to(error: BaseException) -> list[BaseException]:
    """Return an exception, the one it was raised because of or while handling, and so on."""
    found: list[BaseException] = []
    one: BaseException | None = error
    while one is not None and len(found) < MOST_RAISED:
        found.append(one)
        one = one.__cause__ or one.__context__
    return found


def name_of(kind: type) -> str:
    """Return the qualified name of a class."""
    return f"{kind.__module__}.{kind.__qualname__}"


def message_of(error: BaseException) -> str:
    """Return what an exception says; nothing if its class fails at this, too."""
    try:
        return shortened(str(error), LONGEST_MESSAGE)
    except Exception:
        return ""


def shortened(text: str, longest: int) -> str:
    """Leave out the middle of what is too long."""
    half = longest // 2
    left_out = len(text) - 2 * half
    return text if left_out <= 0 else f"{text[:half]}\n[{left_out} characters left out]\n{text[-half:]}"


def send(reply_fd: int, reply: dict[str, Any]) -> None:
    """Write a reply over the one before."""
    os.lseek(reply_fd, 0, os.SEEK_SET)
    os.ftruncate(reply_fd, 0)
    with open(reply_fd, "wb", closefd=False) as file:
        pickle.dump(reply, file)


if __name__ == "__main__":
    guard()
    status = 1
    try:
        status = main(int(sys.argv[1]), int(sys.argv[2]))
    except BaseException:
        traceback.print_exc()
        with contextlib.suppress(Exception):
            sys.stderr.flush()
    finally:  # not as an interpreter ends, which would wait for threads that fn has started
        os._exit(status)

"""The Spark job of `peers.spark_job`, kept alive in a process of its own so that its runs can be timed.

One session serves all runs: what Spark spends on starting is seen once, and its just-in-time
compiler is as warm as in a job of hours.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import numpy as np
import psutil
from measure import Family
from numpy.typing import NDArray

REPLY = "#reply "

Form = Literal["python", "sql"]


class SparkError(RuntimeError):
    """The job ended or could not start; the message has the last lines it wrote."""


def missing(python: str) -> str | None:
    """Say why Spark cannot run with this interpreter; None where it can."""
    home = os.environ.get("JAVA_HOME")
    if not (shutil.which("java") or (home and (Path(home) / "bin" / "java").exists())):
        return "Java is not installed"
    try:
        found = subprocess.run(
            [python, "-c", "import numpy, pyspark"], capture_output=True, text=True, timeout=60, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{python} does not run: {error}"
    if found.returncode:
        return f"{python} has no working pyspark: {found.stderr.strip().splitlines()[-1]}"
    return None


class SparkJob:
    """A running Spark session.

    Parameters
    ----------
    python : str
        Interpreter that has pyspark and numpy.

    Attributes
    ----------
    about : dict
        Versions.
    start_up : float
        CPU seconds until the session was ready.
    family : Family
        The driver, and below it the JVM and the Python workers.

    Raises
    ------
    SparkError
        The session did not start.
    """

    def __init__(self, python: str) -> None:
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115  # lives as long as the job
        environment = {**os.environ, "PYSPARK_PYTHON": python, "PYSPARK_DRIVER_PYTHON": python}
        environment |= {"SPARK_LOCAL_IP": "127.0.0.1", "PYTHONHASHSEED": "0"}
        environment.pop("PYTHONPATH", None)
        self._process = subprocess.Popen(
            [python, str(Path(__file__).with_name("spark_job.py"))],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True, env=environment,
        )  # fmt: skip
        self.family = Family(self._process.pid)
        try:
            self.about = self._answer()
        except BaseException:
            self.close()
            raise
        self.start_up = self.family.cpu_seconds()

    def run(self, form: Form, path: Path) -> None:
        """Compute the features of a Parquet file and throw them away."""
        self._ask({"form": form, "path": str(path)})

    def features(self, form: Form, path: Path) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Compute the features of a Parquet file: (n_selected, 14) and (n_particles, 19)."""
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "features.npz"
            self._ask({"form": form, "path": str(path), "out": str(out)})
            with np.load(out) as arrays:
                return arrays["high_level"], arrays["particles"]

    def close(self) -> None:
        """End the session and all its processes."""
        below = psutil.Process(self._process.pid).children(recursive=True) if self._alive() else []
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for process in psutil.wait_procs(below, timeout=10)[1]:
            process.kill()
        self._process.stdout.close()
        self._log.close()

    def __enter__(self) -> SparkJob:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _alive(self) -> bool:
        return self._process.poll() is None

    def _ask(self, request: dict[str, str]) -> None:
        assert self._process.stdin is not None
        try:
            print(json.dumps(request), file=self._process.stdin, flush=True)
        except BrokenPipeError:
            raise self._failure() from None
        self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith(REPLY):
                return json.loads(line.removeprefix(REPLY))
        raise self._failure()

    def _failure(self) -> SparkError:
        self._process.wait()
        self._log.seek(0)
        return SparkError("the Spark job ended:\n" + "".join(self._log.readlines()[-30:]))

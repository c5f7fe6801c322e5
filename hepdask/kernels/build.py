"""Building the compiled kernels: once for each machine's user, source, compiler and kind of processor.

The library lies in a cache (``$XDG_CACHE_HOME/hepdask`` or ``~/.cache/hepdask``) under a digest of all that it
depends on, and is put there whole: ranks that start at once may all build it, and one result stays.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
from pathlib import Path

from hepdask.errors import MissingDependency
from hepdask.files.atomic import renamed_to

_FOLDER = Path(__file__).parent
_FLAGS = ("-std=c++17", "-O3", "-fPIC", "-shared", "-pthread", "-ffp-contract=fast", "-fno-math-errno")
_COMPILERS = ("c++", "g++", "clang++")
_TIMEOUT_S = 300.0

#: What a processor must be able to do for each level of x86-64, as /proc/cpuinfo calls it.
_LEVELS = {
    "x86-64-v4": {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"},
    "x86-64-v3": {"avx2", "bmi1", "bmi2", "f16c", "fma", "movbe"},
}


class KernelMissing(MissingDependency):
    """A compiled kernel cannot be built or loaded; the message says why."""


def compiler() -> str | None:
    """Find a C++ compiler: ``$CXX``, or the first of the usual names; None where there is none."""
    wanted = [os.environ["CXX"]] if os.environ.get("CXX") else _COMPILERS
    return next((path for name in wanted if (path := shutil.which(name))), None)


def target() -> tuple[str, ...]:
    """Give the compiler's options for this processor; more than the usual only where it is known to help."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return ()
    flags = _processor_flags()
    level = next((name for name, needed in _LEVELS.items() if needed <= flags), None)
    return (f"-march={level}",) if level else ()


@functools.cache
def library(kernel: str) -> ctypes.CDLL:
    """Load a kernel, built first where it is not in the cache.

    Parameters
    ----------
    kernel : str
        Name of its source, without the suffix.

    Returns
    -------
    ctypes.CDLL
        Calls release the GIL.

    Raises
    ------
    KernelMissing
        There is no compiler, or it fails; the message says what to do.
    """
    path = build(kernel)
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise KernelMissing(
            f"{path}: the compiled kernel cannot be loaded ({error}); remove the file"
        ) from None


def build(kernel: str, cache: Path | None = None, options: tuple[str, ...] | None = None) -> Path:
    """Compile a kernel where it is not in the cache.

    Parameters
    ----------
    kernel : str
        Name of its source, without the suffix.
    cache : Path, optional
        Folder of built kernels; by default the user's own.
    options : tuple of str, optional
        Target of the compiler; by default this processor's.

    Returns
    -------
    Path
        The library.

    Raises
    ------
    KernelMissing
        There is no compiler, or it fails.
    """
    found = compiler()
    if found is None:
        raise KernelMissing(
            "the compiled kernels need a C++ compiler, and there is none. On Debian and Ubuntu: apt install g++"
        )
    options = target() if options is None else options
    source = _FOLDER / f"{kernel}.cpp"
    version = _run([found, "--version"]).stdout
    content = [
        source.read_text(),
        *(header.read_text() for header in sorted(_FOLDER.glob("*.h"))),
        version,
        " ".join((*_FLAGS, *options)),
    ]
    key = hashlib.blake2b("\0".join(content).encode(), digest_size=8).hexdigest()
    folder = cache or _cache()
    path = folder / f"{kernel}-{key}.so"
    if path.exists():
        return path
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with renamed_to(path) as built:
            result = _run([found, *_FLAGS, *options, str(source), "-o", str(built)])
            if result.returncode:
                raise KernelMissing(f"{found} cannot build the {kernel} kernel:\n{result.stderr[-2000:]}")
    except OSError as error:
        raise KernelMissing(f"{folder}: the {kernel} kernel cannot be put there ({error})") from None
    return path


def _cache() -> Path:
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "hepdask"


def _processor_flags() -> set[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return set()
    return next((set(line.split()) for line in lines if line.startswith("flags")), set())


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise KernelMissing(f"{command[0]} cannot build the compiled kernels: {error}") from None

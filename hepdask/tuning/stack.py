"""Dense networks trained on one core by a compiled loop: for searches, where thousands of small ones are wanted.

The mathematics is Keras': the same layers, loss and Adam. TensorFlow is not loaded, so a task of a Dask worker can
train, and a core has no more to do than the arithmetic.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hepdask.compiled.build import KernelMissing, compiler, target

_SOURCE = Path(__file__).with_name("stack.cpp")
_FLAGS = ("-std=c++17", "-O3", "-fPIC", "-shared", "-ffp-contract=fast", "-fno-math-errno", "-Wno-psabi")
_ACTIVATIONS = {"relu": 0, "tanh": 1, "elu": 2}
_MOST_LAYERS = 15
_TIMEOUT_S = 300.0


class _Net(ctypes.Structure):
    _fields_ = (
        ("layers", ctypes.c_int32),
        ("activation", ctypes.c_int32),
        ("sizes", ctypes.c_int32 * (_MOST_LAYERS + 1)),
        ("dropout", ctypes.c_float),
    )


class Stack:
    """Dense layers under a softmax, with their Adam optimizer.

    Parameters
    ----------
    sizes : sequence of int
        Features, units of the hidden layers, classes; at most 16 numbers.
    activation : {"relu", "tanh", "elu"}
        Of the hidden layers.
    dropout : float
        After each hidden layer, in training.
    seed : int
        Of the initial weights (Glorot's uniform distribution, biases 0) and of dropout.

    Attributes
    ----------
    parameters : float32
        Layer by layer: weights (outputs, inputs), biases.

    Raises
    ------
    KernelMissing
        There is no compiler, or it fails.
    """

    def __init__(
        self, sizes: Sequence[int], activation: str = "relu", dropout: float = 0.0, seed: int = 0
    ) -> None:
        self._library = library()
        self.sizes = tuple(sizes)
        if not 2 <= len(self.sizes) <= _MOST_LAYERS + 1:
            raise ValueError(f"{len(self.sizes) - 1} layers; from 1 to {_MOST_LAYERS} can be trained")
        padded = (*self.sizes, *[0] * (_MOST_LAYERS + 1 - len(self.sizes)))
        self._net = _Net(
            len(self.sizes) - 1, _ACTIVATIONS[activation], (ctypes.c_int32 * len(padded))(*padded), dropout
        )
        rng = np.random.default_rng((seed, 0))
        layers: list[NDArray] = []
        for inputs, outputs in zip(self.sizes[:-1], self.sizes[1:], strict=True):
            limit = np.sqrt(6 / (inputs + outputs))
            layers += [rng.uniform(-limit, limit, outputs * inputs), np.zeros(outputs)]
        self.parameters = np.concatenate(layers).astype(np.float32)
        self._mean, self._square = np.zeros_like(self.parameters), np.zeros_like(self.parameters)
        self._steps = ctypes.c_int64(0)
        self._seed = seed

    def epoch(
        self,
        rows: NDArray[np.float32],
        labels: NDArray[np.int32],
        weights: NDArray[np.float32],
        order: NDArray[np.int64],
        batch_size: int,
        rate: float,
    ) -> tuple[float, float]:
        """Take one step of Adam for each batch.

        Parameters
        ----------
        rows : float32 (n, features)
            Scaled features, in C order.
        labels : int32 (n,)
            Class of each event.
        weights : float32 (n,)
            Weight of each event in the loss.
        order : int64 (m,)
            The events to learn from, in the order of the batches.
        batch_size : int
            Events of a batch; the last may be shorter.
        rate : float
            Learning rate.

        Returns
        -------
        (float, float)
            Mean loss and accuracy over the epoch.
        """
        result = np.zeros(2)
        self._library.hepdask_stack_train(
            ctypes.byref(self._net), _at(rows), _at(labels), _at(weights), _at(order), len(order), batch_size,
            rate, self._seed, _at(self.parameters), _at(self._mean), _at(self._square), ctypes.byref(self._steps),
            _at(result),
        )  # fmt: skip
        loss, hits = result / max(1, len(order))
        return float(loss), float(hits)

    def scores(self, rows: NDArray[np.float32], index: NDArray[np.int64]) -> NDArray[np.float32]:
        """Give class probabilities (m, classes) of the events `index`."""
        found = np.empty((len(index), self.sizes[-1]), np.float32)
        self._library.hepdask_stack_scores(
            ctypes.byref(self._net), _at(rows), _at(index), len(index), _at(self.parameters), _at(found)
        )
        return found


@functools.cache
def library() -> ctypes.CDLL:
    """Load the loop, compiled first where it is not in the user's cache; calls release the GIL.

    Raises
    ------
    KernelMissing
        There is no compiler, or it fails.
    """
    found = compiler()
    if found is None:
        raise KernelMissing("no C++ compiler (on Debian and Ubuntu: apt install g++)")
    command = [found, *_FLAGS, *target(), *(["-mprefer-vector-width=512"] if "v4" in str(target()) else [])]
    key = hashlib.blake2b("\0".join([_SOURCE.read_text(), *command]).encode(), digest_size=8).hexdigest()
    home = os.environ.get("XDG_CACHE_HOME")
    path = (Path(home) if home else Path.home() / ".cache") / "hepdask" / f"stack-{key}.so"
    try:
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix="stack-", dir=path.parent) as work:
                built = Path(work) / "stack.so"
                done = subprocess.run(
                    [*command, str(_SOURCE), "-o", str(built)], capture_output=True, text=True, timeout=_TIMEOUT_S,
                    check=False,
                )  # fmt: skip
                if done.returncode:
                    raise KernelMissing(f"{found} cannot build {_SOURCE.name}:\n{done.stderr[-2000:]}")
                os.replace(built, path)
        loaded = ctypes.CDLL(str(path))
    except (OSError, subprocess.TimeoutExpired) as error:
        raise KernelMissing(f"{path}: cannot be built or loaded ({error})") from None
    pointer, count, number = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32
    loaded.hepdask_stack_train.argtypes = (
        *[pointer] * 5, count, number, ctypes.c_float, ctypes.c_uint64, *[pointer] * 5,
    )  # fmt: skip
    loaded.hepdask_stack_scores.argtypes = (*[pointer] * 3, count, pointer, pointer)
    loaded.hepdask_stack_train.restype = loaded.hepdask_stack_scores.restype = None
    return loaded


def _at(array: NDArray) -> int:
    return int(array.ctypes.data)

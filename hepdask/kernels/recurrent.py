"""GRU and LSTM over events of any length, on the CPU: the compiled kernel behind arrays.

The mathematics is that of Keras' layers of the same names (GRU with ``reset_after=True``) under a mask:
what is not a particle takes no part, and an event without particles has the state zero.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import byref
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from hepdask.analysis.scaling import Scaler
from hepdask.config import feature_names
from hepdask.kernels.build import library

#: Events that share the lanes of a tile.
LANES = 16

_CELLS = {"gru": 0, "lstm": 1}
_GATES = {"gru": 3, "lstm": 4}
_Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Weights:
    """Weights of a layer, or their gradients, as Keras keeps them.

    Attributes
    ----------
    kernel : float32 (n_features, gates * units)
        Input weights; GRU: update, reset, candidate; LSTM: input, forget, cell, output.
    recurrent : float32 (units, gates * units)
        Weights of the state.
    bias : float32
        GRU (2, 3 * units), of the input and of the state; LSTM (4 * units,).
    """

    kernel: _Floats
    recurrent: _Floats
    bias: _Floats


@dataclass(frozen=True)
class Rows:
    """Particles as rows of features.

    Attributes
    ----------
    values : float32 (n_particles, n_features)
        As the network takes them.
    """

    values: _Floats


@dataclass(frozen=True)
class Stored:
    """Particles as the store keeps them; the kernel makes the 19 features and scales them as it goes.

    Attributes
    ----------
    columns : dict
        The columns `feature_names.STORED`, (n_particles,) each.
    scaler : Scaler
        Scaling of the 19 features.
    chosen : sequence of int
        The features the network takes, as places in `feature_names.PARTICLE`.
    """

    columns: dict[str, NDArray]
    scaler: Scaler
    chosen: Sequence[int]


Particles = Rows | Stored


class _Layer(ctypes.Structure):
    _fields_ = (
        ("cell", ctypes.c_int32), ("features", ctypes.c_int32), ("units", ctypes.c_int32),
        ("kernel", ctypes.c_void_p), ("recurrent", ctypes.c_void_p), ("bias", ctypes.c_void_p),
    )  # fmt: skip


class _Input(ctypes.Structure):
    _fields_ = (
        ("rows", ctypes.c_void_p), ("columns", ctypes.c_void_p * 9),
        ("kind", ctypes.c_void_p), ("charge", ctypes.c_void_p),
        ("shift", ctypes.c_void_p), ("factor", ctypes.c_void_p), ("chosen", ctypes.c_void_p),
    )  # fmt: skip


class _Tiles(ctypes.Structure):
    _fields_ = (
        ("count", ctypes.c_int64), ("first", ctypes.c_void_p), ("length", ctypes.c_void_p),
        ("steps", ctypes.c_void_p), ("memory_start", ctypes.c_void_p),
    )  # fmt: skip


class Recurrent:
    """A recurrent layer that returns the state after an event's last particle.

    Parameters
    ----------
    cell : "gru" or "lstm"
        Kind of cell.
    threads : int
        Threads that share the tiles of a call. The result does not depend on it.

    Raises
    ------
    KernelMissing
        The kernel cannot be built here.

    Notes
    -----
    A call to `backward` belongs to the `forward` before it. The memory for what `forward` keeps is held from
    call to call; it grows with the particles of the largest batch (about 1.1 kB per particle for GRU(50)).
    """

    def __init__(self, cell: Literal["gru", "lstm"], threads: int = 1) -> None:
        self.cell = cell
        self.threads = threads
        self._library = _library()
        self._memory = np.empty(0, np.float32)
        self._last: tuple[Any, ...] | None = None

    def forward(
        self,
        weights: Weights,
        particles: Particles,
        first: NDArray[np.int64],
        length: NDArray[np.int64],
        keep: bool = True,
    ) -> _Floats:
        """Compute the last state of events.

        Parameters
        ----------
        weights : Weights
            Of the layer.
        particles : Rows or Stored
            Particles of the events, and perhaps of others.
        first, length : int64 (n,)
            Event ``i`` has the particles ``first[i]`` to ``first[i] + length[i]``, in this order.
        keep : bool
            Whether `backward` will follow.

        Returns
        -------
        float32 (n, units)
            0 for an event without particles.
        """
        own = _contiguous(weights)
        layer = self._layer(own)
        source, held = _source(particles)
        order = np.argsort(-length, kind="stable")
        count = -(-len(order) // LANES)
        lanes = np.zeros((2, count * LANES), np.int64)
        lanes[0, : len(order)], lanes[1, : len(order)] = first[order], length[order]
        steps = np.ascontiguousarray(lanes[1, ::LANES])
        floats = [
            self._library.hepdask_recurrent_memory(byref(layer), int(step), int(keep)) for step in steps
        ]
        starts = np.concatenate(([0], np.cumsum(np.array(floats, np.int64))))
        memory = self._room(int(starts[-1]))
        tiles = _Tiles(count, _at(lanes[0]), _at(lanes[1]), _at(steps), _at(starts))
        states = np.empty((count * LANES, own.recurrent.shape[0]), np.float32)
        self._library.hepdask_recurrent_forward(
            byref(layer), byref(source), byref(tiles), _at(memory), int(keep), self.threads, _at(states)
        )
        self._last = (own, layer, tiles, (lanes, steps, starts, memory), order) if keep else None
        del held
        result = np.empty((len(order), states.shape[1]), np.float32)
        result[order] = states[: len(order)]
        return result

    def backward(self, gradient: _Floats) -> Weights:
        """Compute the gradients of the weights.

        Parameters
        ----------
        gradient : float32 (n, units)
            Gradient of what the last `forward` returned.

        Returns
        -------
        Weights
            Gradient of each weight, summed over the events.

        Raises
        ------
        RuntimeError
            No `forward` went before, or it did not keep what is needed.
        """
        if self._last is None:
            raise RuntimeError("backward() needs a forward(keep=True) before it, once for each call")
        (own, layer, tiles, held, order), self._last = self._last, None
        lanes = np.zeros((tiles.count * LANES, own.recurrent.shape[0]), np.float32)
        lanes[: len(order)] = gradient[order]
        result = Weights(*(np.empty_like(array) for array in (own.kernel, own.recurrent, own.bias)))
        self._library.hepdask_recurrent_backward(
            byref(layer), byref(tiles), _at(held[-1]), self.threads, _at(lanes),
            _at(result.kernel), _at(result.recurrent), _at(result.bias),
        )  # fmt: skip
        return result

    def _layer(self, weights: Weights) -> _Layer:
        features, outputs = weights.kernel.shape
        units, gates = weights.recurrent.shape[0], _GATES[self.cell]
        bias = (2, outputs) if self.cell == "gru" else (outputs,)
        if (outputs, *weights.recurrent.shape, *weights.bias.shape) != (gates * units, units, outputs, *bias):
            raise ValueError(
                f"weights of shapes {weights.kernel.shape}, {weights.recurrent.shape} and {weights.bias.shape} are "
                f"not those of Keras' {self.cell.upper()}"
            )
        return _Layer(
            _CELLS[self.cell], features, units, _at(weights.kernel), _at(weights.recurrent), _at(weights.bias)
        )

    def _room(self, floats: int) -> _Floats:
        """Return memory that starts at a cache line, grown by a quarter more than is needed."""
        if len(self._memory) < floats + LANES:
            self._memory = np.empty(0, np.float32)  # gives the old memory back before it takes more
            self._memory = np.empty(floats + floats // 4 + LANES, np.float32)
        shift = -self._memory.ctypes.data % 64 // 4
        return self._memory[shift : shift + floats]


def expand(particles: Stored) -> _Floats:
    """Compute the scaled features of particles as the kernel does, float32 (n_particles, n_chosen)."""
    source, held = _source(particles)
    count = len(particles.columns["Pt"])
    rows = np.empty((count, len(particles.chosen)), np.float32)
    _library().hepdask_recurrent_features(byref(source), count, rows.shape[1], _at(rows))
    del held
    return rows


def _library() -> ctypes.CDLL:
    """Load the kernel, with the types of its functions."""
    loaded = library("recurrent")
    pointer, count, number = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32
    signatures = {
        "hepdask_recurrent_memory": ((pointer, count, number), count),
        "hepdask_recurrent_forward": ((pointer, pointer, pointer, pointer, number, number, pointer), None),
        "hepdask_recurrent_backward": ((pointer, pointer, pointer, number, *[pointer] * 4), None),
        "hepdask_recurrent_features": ((pointer, count, number, pointer), None),
    }
    for name, (arguments, result) in signatures.items():
        function = getattr(loaded, name)
        function.argtypes, function.restype = arguments, result
    return loaded


def _contiguous(weights: Weights) -> Weights:
    return Weights(
        *(
            np.ascontiguousarray(array, np.float32)
            for array in (weights.kernel, weights.recurrent, weights.bias)
        )
    )


def _source(particles: Particles) -> tuple[_Input, list[NDArray]]:
    """Point at the particles; the arrays must live as long as the pointers are used."""
    source = _Input()
    if isinstance(particles, Rows):
        rows = np.ascontiguousarray(particles.values, np.float32)
        source.rows = _at(rows)
        return source, [rows]
    columns = [
        np.ascontiguousarray(particles.columns[name], np.int8 if name in ("kind", "Charge") else np.float32)
        for name in feature_names.STORED
    ]
    source.columns[:] = [_at(column) for column in columns[:9]]
    source.kind, source.charge = _at(columns[9]), _at(columns[10])
    shift = np.ascontiguousarray(particles.scaler.shift, np.float32)
    factor = np.ascontiguousarray(particles.scaler.factor, np.float32)
    chosen = np.array(particles.chosen, np.int32)
    source.shift, source.factor, source.chosen = _at(shift), _at(factor), _at(chosen)
    return source, [*columns, shift, factor, chosen]


def _at(array: NDArray) -> int:
    return array.ctypes.data

"""A stack of dense layers under a softmax, with its optimizer, on the CPU: the compiled kernel behind arrays."""

from __future__ import annotations

import ctypes
import functools
import itertools
from collections.abc import Sequence
from ctypes import byref
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hepdask.kernels.build import library
from hepdask.kernels.optimizer_rules import OptimizerRule

#: Activations of layers that the kernel knows, as Keras names them; the last layer has the softmax.
ACTIVATIONS = ("linear", "relu", "tanh", "sigmoid", "elu", "softmax")

ADAM = OptimizerRule()

#: Numbers of a cache line.
_LINE = 16

_Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Sample:
    """Events in the order in which they are trained on.

    Attributes
    ----------
    records : float32 (n, width)
        From `records`.
    class_weights : float32 (n_classes,)
        Weight of each class in the loss.
    order : int64 (n,)
        Cut into batches one after the other; the last one may be short.
    batch_size : int
        Events of a batch over all ranks.
    rank, ranks : int
        This rank takes the events ``rank``, ``rank + ranks``, … of each batch.
    seed : (int, int)
        Of the run and the epoch. With an event's place in the order, it decides which units are dropped out.

    Raises
    ------
    ValueError
        The order names events that are not there.
    """

    records: _Floats
    class_weights: _Floats
    order: NDArray[np.int64]
    batch_size: int
    rank: int = 0
    ranks: int = 1
    seed: tuple[int, int] = (0, 0)

    def __post_init__(self) -> None:
        count = len(self.records)
        if len(self.order) and not 0 <= self.order.min() <= self.order.max() < count:
            raise ValueError(f"the order names events that are not among the {count}")


@dataclass(frozen=True)
class Rows:
    """Events whose features another layer made.

    Attributes
    ----------
    values : float32 (n, n_features)
        As the network takes them.
    label : int64 (n,)
        Class.
    weight : float32 (n,)
        Weight in the loss.
    place : uint64 (n,)
        What tells the events apart; with the seed, it decides which units are dropped out.
    seed : (int, int)
        Of the run and the epoch.
    """

    values: _Floats
    label: NDArray[np.int64]
    weight: _Floats
    place: NDArray[np.uint64]
    seed: tuple[int, int] = (0, 0)


def records(rows: _Floats, labels: NDArray[np.integer]) -> _Floats:
    """Put features and label of an event next to each other, so that fetching an event is fetching one place.

    Parameters
    ----------
    rows : float32 (n, n_features)
        Scaled features.
    labels : int (n,)
        Class.

    Returns
    -------
    float32 (n, width)
        Each event starts at a cache line.
    """
    count, features = rows.shape
    width = -(-(features + 1) // _LINE) * _LINE
    raw = np.empty(count * width + _LINE, np.float32)
    shift = -raw.ctypes.data % (4 * _LINE) // 4
    found = raw[shift : shift + count * width].reshape(count, width)
    found[:, :features], found[:, features], found[:, features + 1 :] = rows, labels, 0.0
    return found


class _Network(ctypes.Structure):
    _fields_ = (
        ("layers", ctypes.c_int32), ("widths", ctypes.c_void_p), ("activations", ctypes.c_void_p),
        ("dropouts", ctypes.c_void_p), ("weights_before", ctypes.c_int64), ("weights", ctypes.c_void_p),
        ("first_moments", ctypes.c_void_p), ("second_moments", ctypes.c_void_p), ("gradients", ctypes.c_void_p),
        ("optimizer", ctypes.c_int32),
        ("first", ctypes.c_float), ("second", ctypes.c_float), ("epsilon", ctypes.c_float),
    )  # fmt: skip


class _Sample(ctypes.Structure):
    _fields_ = (
        ("records", ctypes.c_void_p), ("class_weights", ctypes.c_void_p), ("order", ctypes.c_void_p),
        ("events", ctypes.c_int64), ("batch_size", ctypes.c_int64), ("key", ctypes.c_uint64),
        ("width", ctypes.c_int32), ("rank", ctypes.c_int32), ("ranks", ctypes.c_int32),
    )  # fmt: skip


class _Rows(ctypes.Structure):
    _fields_ = (
        ("values", ctypes.c_void_p), ("label", ctypes.c_void_p), ("weight", ctypes.c_void_p),
        ("place", ctypes.c_void_p), ("value_gradients", ctypes.c_void_p),
        ("events", ctypes.c_int64), ("key", ctypes.c_uint64),
    )  # fmt: skip


class DenseStack:
    """Dense layers, one after the other, and what their optimizer remembers of them.

    Parameters
    ----------
    widths : sequence of int
        Features, then the units of each layer; the last number is that of the classes.
    activations : sequence of str
        Of each layer, from `ACTIVATIONS`; softmax for the last one and for no other.
    dropouts : sequence of float, optional
        Share of each layer's outputs that is dropped in training, the others being scaled up as Keras does; 0 for
        the last one. By default nothing is dropped.
    rule : OptimizerRule
        The optimizer; default Adam as Keras has it.
    input_dropout : float
        The same for the features.
    before : int
        Weights of other layers, which stand before those of this network in `weights` and the other arrays: `update`
        takes them along, what computes with them and fills in their gradients is elsewhere.

    Attributes
    ----------
    weights, first_moments, second_moments, gradients : float32 (n_weights,)
        Kernel (row by row) and bias of one layer after the other; to be filled and read in place.

    Raises
    ------
    KernelMissing
        The kernel cannot be built here.
    ValueError
        The layers are not of this form.
    """

    def __init__(
        self,
        widths: Sequence[int],
        activations: Sequence[str],
        dropouts: Sequence[float] | None = None,
        rule: OptimizerRule = ADAM,
        input_dropout: float = 0.0,
        before: int = 0,
    ) -> None:
        places = [ACTIVATIONS.index(name) for name in activations]
        last = ACTIVATIONS.index("softmax")
        if len(widths) != len(places) + 1 or not places or places[-1] != last or last in places[:-1]:
            raise ValueError(
                f"layers of {list(widths)} with {list(activations)} are no stack under one softmax"
            )
        dropouts = [0.0] * len(places) if dropouts is None else dropouts
        if len(dropouts) != len(places) or dropouts[-1] or not all(0 <= rate < 1 for rate in dropouts):
            raise ValueError(f"dropout of {list(dropouts)} does not fit the layers; the last has none")
        self._library = _library()
        self._widths, self._activations = np.array(widths, np.int32), np.array(places, np.int32)
        if not 0 <= input_dropout < 1:
            raise ValueError(f"a dropout of {input_dropout} leaves no features")
        self._dropouts, self.rule = np.array([input_dropout, *dropouts], np.float32), rule
        count = before + sum((k + 1) * n for k, n in itertools.pairwise(widths))
        self.weights, self.first_moments, self.second_moments, self.gradients = np.zeros(
            (4, count), np.float32
        )
        self._network = _Network(
            len(places), _at(self._widths), _at(self._activations), _at(self._dropouts), before,
            _at(self.weights), _at(self.first_moments), _at(self.second_moments), _at(self.gradients),
            *rule.numbers(),
        )  # fmt: skip

    def steps(self, sample: Sample, first: int, rates: _Floats) -> tuple[_Floats, _Floats]:
        """Take steps on batches, one after the other, on one rank.

        Parameters
        ----------
        sample : Sample
            The events.
        first : int
            The first of the batches.
        rates : float32 (n_steps,)
            From `rates` of the rule, for each step.

        Returns
        -------
        losses, n_correct : float32 (n_steps,)
            Weighted mean loss of each batch before its step, and the events with the right class.
        """
        rates = np.ascontiguousarray(rates, np.float32)
        losses, n_correct = np.empty((2, len(rates)), np.float32)
        source, held = self._source(sample)
        self._library.hepdask_dense_steps(
            byref(self._network), byref(source), first, len(rates), _at(rates), _at(losses), _at(n_correct)
        )
        del held
        return losses, n_correct

    def differentiate(self, sample: Sample, batch: int) -> tuple[float, float]:
        """Compute this rank's part of a batch's `gradients`; return its part of the loss and its `n_correct`."""
        found = np.empty(2, np.float32)
        source, held = self._source(sample)
        self._library.hepdask_dense_gradients(
            byref(self._network), byref(source), batch, _at(found[:1]), _at(found[1:])
        )
        del held
        return float(found[0]), float(found[1])

    def update(self, rate: float) -> None:
        """Take the step that `gradients` ask for; the rate is one of those of `steps`."""
        self._library.hepdask_dense_update(byref(self._network), rate)

    def differentiate_rows(self, rows: Rows) -> tuple[float, float, _Floats]:
        """Compute the `gradients` of rows.

        Returns
        -------
        loss, n_correct : float
            Sum of the weighted losses, and the events with the right class, those of weight 0 not counted.
        value_gradients : float32 (n, n_features)
            Gradients of the values.
        """
        found, value_gradients = np.empty(2, np.float32), np.empty_like(rows.values)
        source, held = self._rows(rows, value_gradients)
        self._library.hepdask_dense_rows(byref(self._network), byref(source), _at(found[:1]), _at(found[1:]))
        del held
        return float(found[0]), float(found[1]), value_gradients

    def scores_of_rows(self, rows: Rows) -> _Floats:
        """Return class probabilities (n, n_classes) of rows, float32."""
        found = np.empty((len(rows.values), self._widths[-1]), np.float32)
        source, held = self._rows(rows, found)
        self._library.hepdask_dense_rows_scores(byref(self._network), byref(source), _at(found))
        del held
        return found

    def scores(self, records: _Floats, order: NDArray[np.int64]) -> _Floats:
        """Return class probabilities (n, n_classes) of the events that the order names."""
        found = np.empty((len(order), self._widths[-1]), np.float32)
        weights = np.ones(self._widths[-1], np.float32)
        source, held = self._source(Sample(records, weights, order, max(1, len(order))))
        self._library.hepdask_dense_scores(byref(self._network), byref(source), _at(found))
        del held
        return found

    def _source(self, sample: Sample) -> tuple[_Sample, list[NDArray]]:
        """Point at the events; the arrays must live as long as the pointers are used."""
        arrays = [
            np.ascontiguousarray(array, dtype)
            for array, dtype in (
                (sample.records, np.float32), (sample.class_weights, np.float32), (sample.order, np.int64)
            )
        ]  # fmt: skip
        width = arrays[0].shape[1]
        if width <= self._widths[0] or arrays[1].shape != (self._widths[-1],):
            raise ValueError(f"records of {width} and {arrays[1].shape} class weights do not fit the network")
        key, size = _key(sample.seed), sample.batch_size
        return _Sample(*map(_at, arrays), len(arrays[2]), size, key, width, sample.rank, sample.ranks), arrays

    def _rows(self, rows: Rows, value_gradients: _Floats) -> tuple[_Rows, list[NDArray]]:
        count = len(rows.values)
        arrays = [
            np.ascontiguousarray(array, dtype)
            for array, dtype in (
                (rows.values, np.float32), (rows.label, np.int64), (rows.weight, np.float32), (rows.place, np.uint64)
            )
        ]  # fmt: skip
        shapes = [array.shape for array in arrays]
        if shapes != [(count, self._widths[0]), *[(count,)] * 3]:
            raise ValueError(f"rows of shapes {shapes} do not fit a network of {self._widths[0]} features")
        return _Rows(*map(_at, arrays), _at(value_gradients), count, _key(rows.seed)), arrays


@functools.lru_cache(4)
def _key(seed: tuple[int, int]) -> int:
    """Derive the key of an epoch's dropout; another number than those that shuffle it."""
    return int(np.random.SeedSequence((*seed, 1)).generate_state(1, np.uint64)[0])


def _library() -> ctypes.CDLL:
    """Load the kernel, with the types of its functions."""
    loaded = library("dense")
    pointer, count = ctypes.c_void_p, ctypes.c_int64
    signatures = {
        "hepdask_dense_steps": (pointer, pointer, count, count, pointer, pointer, pointer),
        "hepdask_dense_gradients": (pointer, pointer, count, pointer, pointer),
        "hepdask_dense_update": (pointer, ctypes.c_float),
        "hepdask_dense_scores": (pointer, pointer, pointer),
        "hepdask_dense_rows": (pointer, pointer, pointer, pointer),
        "hepdask_dense_rows_scores": (pointer, pointer, pointer),
    }
    for name, arguments in signatures.items():
        function = getattr(loaded, name)
        function.argtypes, function.restype = arguments, None
    return loaded


def _at(array: NDArray) -> int:
    return array.ctypes.data

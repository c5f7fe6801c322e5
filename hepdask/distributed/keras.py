"""Keras 3 on several ranks: an optimizer that reduces gradients, equal starts, and a check against drift.

``horovod.tensorflow.keras`` hooks methods that Keras 3 no longer calls, so that ranks train on their own
without a word. Here the one method that every path of Keras 3 goes through, ``apply``, does the reduction.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import keras
import numpy as np
import tensorflow as tf

from hepdask.distributed import collective
from hepdask.distributed.errors import NotSynchronised

Compression = Literal["none", "fp16"]


def DistributedOptimizer(  # noqa: N802 (the name Horovod's users look for)
    optimizer: keras.optimizers.Optimizer,
    op: collective.Reduction = "average",
    compression: Compression = "none",
    accumulate: int = 1,
) -> keras.optimizers.Optimizer:
    """Return an optimizer like the given one that reduces gradients over all ranks before it applies them.

    All gradients of one type travel in one allreduce, so that the cost of a step does not grow with the
    number of variables. Compile the model with ``jit_compile=False``: XLA cannot compile what Horovod does.

    A model compiled with the result is saved like one compiled with the original, and loads in plain Keras.

    Parameters
    ----------
    optimizer : keras.optimizers.Optimizer
        Is not changed. Its state, where it has any, is copied.
    op : "average" or "sum"
        Average where each rank's loss is a mean over its batch; sum where the losses are already divided by
        the size of the global batch.
    compression : "none" or "fp16"
        Gradients travel as they are, or rounded to half precision: half the bytes, three significant digits,
        and nothing below 6e-8 or above 65504.
    accumulate : int
        Number of batches whose gradients each rank averages by itself before they travel: one step of
        ``accumulate`` times the batch size. ``iterations`` counts these steps. What is left of an incomplete
        one is in ``optimizer.local_variables``, which differ between ranks.
    """
    if accumulate < 1:
        raise ValueError(f"accumulate must be at least 1, not {accumulate}")
    original = type(optimizer)

    class Distributed(original):  # type: ignore[misc, valid-type]
        local_variables: list[tf.Variable]

        def build(self, variables: Any) -> None:
            super().build(variables)
            self.local_variables = []
            if accumulate > 1:  # not tracked by Keras: neither saved nor compared between ranks
                with tf.init_scope():
                    self._batches = tf.Variable(0, trainable=False, name="batches")
                    self._sums = [tf.Variable(tf.zeros(v.shape, v.dtype), trainable=False) for v in variables]
                self.local_variables = [self._batches, *self._sums]

        def apply(self, grads: Any, trainable_variables: Any = None) -> Any:
            if not self.built:
                self.build(list(trainable_variables))
            if accumulate == 1:
                return self._step(grads, trainable_variables)
            variables = (
                self._trainable_variables if trainable_variables is None else list(trainable_variables)
            )
            sums = [self._sums[self._get_variable_index(variable)] for variable in variables]
            for total, gradient in zip(sums, grads, strict=True):
                if gradient is not None:
                    total.assign_add(tf.convert_to_tensor(gradient) / accumulate)
            self._batches.assign_add(1)
            return tf.cond(self._batches == accumulate, lambda: self._close(sums, grads, variables), tf.no_op)

        def _close(self, sums: list[tf.Variable], grads: Any, variables: Any) -> Any:
            """Take the step that the batches so far add up to, and start anew."""
            means = [None if g is None else total.value() for total, g in zip(sums, grads, strict=True)]
            self._step(means, variables)
            for local in self.local_variables:
                local.assign(tf.zeros_like(local))
            return tf.no_op()

        def _step(self, grads: Any, variables: Any) -> Any:
            return super().apply(reduce_gradients(grads, op, self.name, compression), variables)

    # Keras writes class and module into the file: this one is to be found where the original is.
    Distributed.__name__ = original.__name__
    Distributed.__qualname__ = original.__qualname__
    Distributed.__module__ = original.__module__

    copy = Distributed.from_config(optimizer.get_config())
    if optimizer.built:
        copy.build(optimizer._trainable_variables)
        for mine, theirs in zip(copy.variables, optimizer.variables, strict=True):
            mine.assign(theirs)
    return copy


def reduce_gradients(
    gradients: Iterable[Any], op: collective.Reduction, name: str, compression: Compression = "none"
) -> list[Any]:
    """Return gradients averaged or summed over all ranks, with one allreduce for each type of number.

    Parameters
    ----------
    gradients : iterable of tensor or None
        The same shapes on all ranks; None stays None, sparse ones become dense.
    op : "average" or "sum"
        How to combine.
    name : str
        Tells apart optimizers whose steps may overlap.
    compression : "none" or "fp16"
        How the numbers travel; what is returned has the types of ``gradients``.
    """
    reduced = list(gradients)
    if collective.size() == 1:
        return reduced
    by_type: dict[tf.DType, list[int]] = {}
    for index, gradient in enumerate(reduced):
        if gradient is not None:
            reduced[index] = tf.convert_to_tensor(gradient)
            by_type.setdefault(reduced[index].dtype, []).append(index)
    for dtype, indices in by_type.items():
        parts = [reduced[index] for index in indices]
        flat = tf.concat([tf.reshape(part, [-1]) for part in parts], 0)
        if compression == "fp16":
            flat = tf.cast(flat, tf.float16)
        flat = collective.allreduce(flat, op, name=f"{name}.gradients.{dtype.name}")
        flat = tf.cast(flat, dtype)
        pieces = tf.split(flat, [tf.size(part) for part in parts])
        for index, part, piece in zip(indices, parts, pieces, strict=True):
            piece = tf.reshape(piece, tf.shape(part))
            piece.set_shape(part.shape)
            reduced[index] = piece
    return reduced


def broadcast_variables(variables: Iterable[Any], root: int = 0) -> None:
    """Give all ranks the values that rank ``root`` has.

    Call it once before training, with ``model.variables + optimizer.variables``; not inside ``tf.function``.

    Parameters
    ----------
    variables : iterable of keras.Variable or tf.Variable
        The same ones in the same order on all ranks.
    root : int
        The rank whose values count.
    """
    if collective.size() == 1:
        return
    mine = list(variables)
    values = get_values(mine) if collective.rank() == root else None
    set_values(mine, collective.broadcast(values, root))


def average_metrics(logs: Mapping[str, float]) -> dict[str, float]:
    """Return metrics averaged over all ranks, in one allreduce.

    Parameters
    ----------
    logs : mapping
        The same names on all ranks. Every rank counts the same: an average over ranks with as many events each
        is one over all events.
    """
    names = sorted(logs)
    means = collective.allreduce(np.array([float(logs[name]) for name in names]), name="metrics")
    return dict(zip(names, np.asarray(means).tolist(), strict=True))


class Synchronise(keras.callbacks.Callback):
    """Everything ``model.fit`` needs on several ranks besides the optimizer.

    At the start all ranks get the weights and the optimizer's variables of rank 0. After each epoch the metrics
    in ``logs`` become their averages over the ranks, for the callbacks after this one and for the history, and a
    difference between the ranks' trainable variables or optimizers raises
    `hepdask.distributed.NotSynchronised`. Statistics that layers gather by themselves, such as those of
    batch normalisation, are each rank's own.
    """

    def on_train_begin(self, logs: Any = None) -> None:
        """Give all ranks the same start."""
        if not self.model.optimizer.built:
            self.model.optimizer.build(self.model.trainable_variables)
        broadcast_variables([*self.model.weights, *self.model.optimizer.variables])
        assert_synchronised(self._compared())

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Average the metrics and compare the variables."""
        if logs:
            logs |= average_metrics(logs)
        assert_synchronised(self._compared())

    def _compared(self) -> list[Any]:
        return [*self.model.trainable_variables, *self.model.optimizer.variables]


def get_values(variables: Iterable[Any]) -> list[np.ndarray]:
    """Return the values of variables, as a `hepdask.distributed.Checkpoint` can keep them."""
    return [_value(variable) for variable in variables]


def set_values(variables: Iterable[Any], values: Iterable[np.ndarray]) -> None:
    """Give variables the values that `get_values` returned; ValueError if there are more or fewer."""
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)


def assert_synchronised(variables: Iterable[Any]) -> None:
    """Raise an error on all ranks if any variable is not bit for bit the same on all of them.

    Parameters
    ----------
    variables : iterable of keras.Variable or tf.Variable
        The same ones in the same order on all ranks.

    Raises
    ------
    NotSynchronised
        Names the variables that differ, the same on every rank.
    """
    if collective.size() == 1:
        return
    everyone = collective.gather([(_name(variable), _digest(_value(variable))) for variable in variables])
    count = max(len(hashes) for hashes in everyone)
    padded = [hashes + [("(missing)", b"")] * (count - len(hashes)) for hashes in everyone]
    differing = [at[0][0] for at in zip(*padded, strict=True) if len(set(at)) > 1]
    if differing:
        raise NotSynchronised(tuple(differing))


def _value(variable: Any) -> np.ndarray:
    return np.asarray(keras.ops.convert_to_numpy(variable))


def _digest(value: np.ndarray) -> bytes:
    head = f"{value.dtype.str}{value.shape}".encode()
    return hashlib.blake2b(head + value.tobytes(), digest_size=16).digest()


def _name(variable: Any) -> str:
    return str(getattr(variable, "path", variable.name))

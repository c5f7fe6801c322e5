"""Keras 3 on several ranks: an optimizer that reduces gradients, equal starts, and a check against drift.

``horovod.tensorflow.keras`` hooks methods that Keras 3 no longer calls, so that ranks train on their own
without a word. Here the one method that every path of Keras 3 goes through, ``apply``, does the reduction.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from hepdask.distributed import collective
from hepdask.distributed.errors import NotSynchronised


def DistributedOptimizer(  # noqa: N802 (the name Horovod's users look for)
    optimizer: keras.optimizers.Optimizer, op: collective.Reduction = "average"
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
    """
    original = type(optimizer)

    class Distributed(original):  # type: ignore[misc, valid-type]
        def apply(self, grads: Any, trainable_variables: Any = None) -> Any:
            return super().apply(reduce_gradients(grads, op, self.name), trainable_variables)

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


def reduce_gradients(gradients: Iterable[Any], op: collective.Reduction, name: str) -> list[Any]:
    """Return gradients averaged or summed over all ranks, with one allreduce for each type of number.

    Parameters
    ----------
    gradients : iterable of tensor or None
        The same shapes on all ranks; None stays None, sparse ones become dense.
    op : "average" or "sum"
        How to combine.
    name : str
        Tells apart optimizers whose steps may overlap.
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
        flat = collective.allreduce(flat, op, name=f"{name}.gradients.{dtype.name}")
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


def get_values(variables: Iterable[Any]) -> list[np.ndarray]:
    """Return the values of variables, as a :class:`~hepdask.distributed.Checkpoint` can keep them."""
    return [_value(variable) for variable in variables]


def set_values(variables: Iterable[Any], values: Iterable[np.ndarray]) -> None:
    """Give variables the values that :func:`get_values` returned; ValueError if there are more or fewer."""
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

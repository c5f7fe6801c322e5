"""The compiled kernels' copies of a network's weights and of what its optimizer remembers of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hepdask.engines.optimizers import moments
from hepdask.kernels.dense import DenseStack


class KernelWeights:
    """A kernel's copy of a network's weights and of what its optimizer remembers of them.

    Parameters
    ----------
    kernel : DenseStack
        Whose arrays are filled.
    variables : sequence of keras.Variable
        In the order in which the kernel keeps them.
    optimizer : keras.optimizers.Optimizer or None
        None to score only.
    """

    def __init__(self, kernel: DenseStack, variables: Sequence[Any], optimizer: Any) -> None:
        self._kernel, self._weights, self._optimizer = kernel, variables, optimizer

    def fetch_weights(self) -> None:
        """Copy the weights of the network to the kernel."""
        _fill(self._kernel.weights, self._weights)

    def fetch(self, steps: int) -> NDArray[np.float32]:
        """Copy weights and moments to the kernel, and return the rates of the next steps, float32 (steps,)."""
        for buffer, variables in self._pairs():
            _fill(buffer, variables)
        rate, before = float(self._optimizer.learning_rate), int(self._optimizer.iterations)
        return self._kernel.rule.rates(rate, before, steps)

    def return_to_keras(self, steps: int) -> None:
        """Copy weights and moments back to Keras, and count these steps."""
        for buffer, variables in self._pairs():
            ends = np.cumsum([int(np.prod(variable.shape)) for variable in variables])
            for variable, values in zip(variables, np.split(buffer, ends[:-1]), strict=True):
                variable.assign(values.reshape(variable.shape))
        self._optimizer.iterations.assign_add(steps)

    def _pairs(self) -> list[tuple[NDArray[np.float32], Sequence[Any]]]:
        places = [self._optimizer._get_variable_index(variable) for variable in self._weights]
        pairs = [(self._kernel.weights, self._weights)]
        buffers = (self._kernel.first_moments, self._kernel.second_moments)
        for buffer, kept in zip(buffers, moments(self._optimizer), strict=True):
            if kept:
                pairs.append((buffer, [kept[place] for place in places]))
        return pairs


def _fill(buffer: NDArray[np.float32], variables: Sequence[Any]) -> None:
    np.concatenate([np.ravel(variable.value) for variable in variables], out=buffer)

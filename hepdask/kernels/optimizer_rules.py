"""How the compiled kernels move weights: Keras' Adam, SGD and RMSprop, each as a few numbers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hepdask.config import Optimised, OptimizerName

#: In the order of ``Optimizer`` in ``optimizers.h``.
OPTIMIZERS: tuple[OptimizerName, ...] = ("adam", "sgd", "rmsprop")


@dataclass(frozen=True)
class OptimizerRule:
    """An optimizer, without its learning rate.

    Attributes
    ----------
    optimizer : {"adam", "sgd", "rmsprop"}
        Which one.
    first : float
        Adam's beta_1; the momentum of SGD.
    second : float
        Adam's beta_2; RMSprop's rho.
    epsilon : float
        Of Adam and RMSprop.
    """

    optimizer: OptimizerName = "adam"
    first: float = 0.9
    second: float = 0.999
    epsilon: float = 1e-7

    @classmethod
    def of(cls, settings: Optimised) -> OptimizerRule:
        """Give the optimizer that a model's section asks for; what it leaves open is as in Keras."""
        if settings.optimizer == "sgd":
            return cls("sgd", first=settings.momentum, second=0.0, epsilon=0.0)
        if settings.optimizer == "rmsprop":
            return cls("rmsprop", first=0.0, second=0.9)
        return cls()

    def rates(self, learning_rate: float, before: int, steps: int) -> NDArray[np.float32]:
        """Compute what each of the next steps is multiplied with.

        Parameters
        ----------
        learning_rate : float
            Of these steps.
        before : int
            Steps that were taken before.
        steps : int
            How many there will be.

        Returns
        -------
        float32 (n_steps,)
            The learning rate; of Adam corrected for the moments' start at zero, in the single precision that Keras
            uses.
        """
        rate = np.float32(learning_rate)
        if self.optimizer != "adam":
            return np.full(steps, rate)
        step = (before + 1 + np.arange(steps)).astype(np.float32)
        one = np.float32(1)
        first, second = (one - np.power(np.float32(beta), step) for beta in (self.first, self.second))
        return rate * np.sqrt(second) / first

    def numbers(self) -> tuple[int, float, float, float]:
        """Give the fields of ``OptimizerRule`` in ``optimizers.h``: moments follow by one minus their decay."""
        first = self.first if self.optimizer == "sgd" else 1 - self.first
        return OPTIMIZERS.index(self.optimizer), first, 1 - self.second, self.epsilon

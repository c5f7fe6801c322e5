"""Keras' optimizers and the compiled kernels' rules, each as the other; where Keras keeps what they remember."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras

from hepdask.kernels.optimizer_rules import OptimizerRule


def keras_optimizer(rule: OptimizerRule, learning_rate: float) -> keras.optimizers.Optimizer:
    """Build the optimizer of Keras that does what a rule says."""
    if rule.optimizer == "sgd":
        return keras.optimizers.SGD(learning_rate, rule.first)
    if rule.optimizer == "rmsprop":
        return keras.optimizers.RMSprop(learning_rate, rule.second, epsilon=rule.epsilon)
    return keras.optimizers.Adam(learning_rate, rule.first, rule.second, rule.epsilon)


def rule_of(optimizer: keras.optimizers.Optimizer) -> OptimizerRule:
    """Say what an optimizer of `keras_optimizer`, or one that reduces over ranks in its place, does."""
    if isinstance(optimizer, keras.optimizers.SGD):
        return OptimizerRule("sgd", optimizer.momentum, 0.0, 0.0)
    if isinstance(optimizer, keras.optimizers.RMSprop):
        return OptimizerRule("rmsprop", 0.0, optimizer.rho, optimizer.epsilon)
    return OptimizerRule("adam", optimizer.beta_1, optimizer.beta_2, optimizer.epsilon)


def moments(optimizer: Any) -> tuple[Sequence[Any], Sequence[Any]]:
    """Return what an optimizer remembers of each variable, in its own order: first and second moments, or nothing."""
    if isinstance(optimizer, keras.optimizers.SGD):
        return optimizer.momentums, []  # none where the momentum is 0
    if isinstance(optimizer, keras.optimizers.RMSprop):
        return [], optimizer._velocities
    return optimizer._momentums, optimizer._velocities

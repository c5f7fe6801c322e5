"""Which engine takes a network through batches: four do the same mathematics, each the fastest of its kind."""

from __future__ import annotations

import logging
import os
from typing import Any

from hepdask.engines.engine import Engine, Particles
from hepdask.kernels import KernelMissing

logger = logging.getLogger(__name__)


def choose_engine(
    model: Any, optimizer: Any, particles: Particles | None, kernel: bool, threads: int, long: bool = True
) -> tuple[Engine, str]:
    """Pick the engine that fits a network and this machine.

    Parameters
    ----------
    model : keras.Model
        The network.
    optimizer : keras.optimizers.Optimizer or None
        One of `engines.optimizers`, built for the model's trainable variables and reducing over all ranks; None to
        score only.
    particles : Particles or None
        None where the network takes none.
    kernel : bool
        Whether the compiled kernels may be used.
    threads : int
        Threads it may take.
    long : bool
        Whether so many steps will follow that TensorFlow had better compile them first.

    Returns
    -------
    Engine, str
        And in words what was chosen.
    """
    import tensorflow as tf

    from hepdask.engines.keras_padded import KerasPadded
    from hepdask.engines.kernel_recurrent import KernelRecurrent
    from hepdask.engines.supported_layers import recurrent_chain

    if particles is None:
        return _choose_dense(model, optimizer, kernel, long)
    layers = recurrent_chain(model)
    gpus = tf.config.list_physical_devices("GPU")
    logger.debug(
        "engine of %s: %d GPUs are visible; training.kernel is %s; the recurrent kernel %s",
        model.name, len(gpus), "on" if kernel else "off", "has all its layers" if layers else "lacks a layer of it",
    )  # fmt: skip
    if gpus:
        return KerasPadded(model, optimizer, particles, on_device=True), "Keras on padded batches, on a GPU"
    if layers is None:
        return KerasPadded(model, optimizer, particles), "Keras on padded batches"
    if not kernel:
        return KerasPadded(model, optimizer, particles), "Keras on padded batches (training.kernel is off)"
    try:
        engine_name = "the compiled recurrent kernel"
        if os.environ.get("CUDA_VISIBLE_DEVICES"):
            engine_name += ", on the CPU: TensorFlow sees no GPU (hepdask cluster check gpu says why)"
        return KernelRecurrent(model, optimizer, *layers, particles, threads), engine_name
    except KernelMissing as missing:
        return KerasPadded(
            model, optimizer, particles
        ), f"Keras on padded batches, several times slower: {missing}"


def _choose_dense(model: Any, optimizer: Any, kernel: bool, long: bool) -> tuple[Engine, str]:
    from hepdask.engines.keras_dense import KerasDense
    from hepdask.engines.kernel_dense import KernelDense
    from hepdask.engines.supported_layers import dense_chain

    reason = "training.kernel is off"
    if kernel and optimizer is not None:
        chain = dense_chain(model)
        logger.debug("engine of %s: %s chain of dense layers", model.name, "no" if chain is None else "a")
        reason = "the kernel takes only chains of dense layers"
        if chain is not None:
            try:
                return KernelDense(model, optimizer, chain), "the compiled dense kernel"
            except KernelMissing as missing:
                reason = str(missing)
    return KerasDense(model, optimizer, long), f"many steps in one call of TensorFlow ({reason})"

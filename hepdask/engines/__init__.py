"""How a rank takes a network through batches: four ways to do the same mathematics, each the fastest of its kind.

`kernel_dense` and `keras_dense` run many steps in one call on high-level features that stay in memory, the one in the
compiled kernel, the other in TensorFlow; `kernel_recurrent` runs networks with a recurrent layer over the particles on
both compiled kernels; `keras_padded` is plain Keras on padded batches, for GPUs and for all other networks. `choice`
picks one.
"""

from hepdask._face import listing
from hepdask.engines.choice import choose_engine
from hepdask.engines.engine import Engine, Particles, Result

__all__ = ["Engine", "Particles", "Result", "choose_engine"]

__dir__ = listing(__name__, __all__)

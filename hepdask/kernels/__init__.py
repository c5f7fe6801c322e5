"""Networks in compiled code on a CPU: recurrent layers over jagged events, many steps of dense networks in one call."""

from hepdask._face import listing
from hepdask.kernels.build import KernelMissing

__all__ = ["KernelMissing"]

__dir__ = listing(__name__, __all__)

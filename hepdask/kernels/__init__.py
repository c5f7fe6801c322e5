"""Networks in compiled code on a CPU: recurrent layers over jagged events, many steps of dense networks in one call."""

from hepdask.kernels.build import KernelMissing

__all__ = ["KernelMissing"]

"""Networks on a CPU in compiled code: recurrent layers over jagged events, many steps of a dense network in one call."""

from hepdask.compiled.build import KernelMissing

__all__ = ["KernelMissing"]

"""Recurrent layers over jagged events on a CPU, many times faster than padded ones and exactly as good."""

from hepdask.recurrent.build import KernelMissing
from hepdask.recurrent.kernel import LANES, Particles, Recurrent, Rows, Stored, Weights, expand

__all__ = ["LANES", "KernelMissing", "Particles", "Recurrent", "Rows", "Stored", "Weights", "expand"]

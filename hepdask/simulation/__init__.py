"""Simulated events: Pythia 8 at 13 TeV, a parametrised CMS-like detector, files in Delphes' layout."""

from hepdask._face import listing
from hepdask.simulation.block import simulate_block
from hepdask.simulation.pythia import PROCESSES
from hepdask.simulation.rootfile import read_provenance, write_events

__all__ = ["PROCESSES", "read_provenance", "simulate_block", "write_events"]

__dir__ = listing(__name__, __all__)

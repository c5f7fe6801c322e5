"""What a row of the sample is: selection, particles and features. `topology` is the published analysis."""

from typing import TYPE_CHECKING

from hepdask._face import listing, modules_on_demand

__all__ = [
    "bad_events", "columns", "compiled", "cutflow", "fingerprint", "histograms", "scaling", "topology",
    "user_functions",
]  # fmt: skip

__dir__ = listing(__name__, __all__)
if not TYPE_CHECKING:
    __getattr__ = modules_on_demand(__name__, __all__)

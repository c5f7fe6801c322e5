"""Networks, one file an architecture; importing them does not import TensorFlow, building one does."""

from typing import TYPE_CHECKING

from hepdask._face import listing, modules_on_demand
from hepdask.models.kinds import NETWORKS

__all__ = list(NETWORKS)

__dir__ = listing(__name__, __all__)
if not TYPE_CHECKING:
    __getattr__ = modules_on_demand(__name__, __all__)

"""Events for those who train elsewhere, and events that others have prepared."""

from hepdask._face import listing
from hepdask.exchange.event_files import FORMATS, Exported, write_folder

__all__ = ["FORMATS", "Exported", "write_folder"]

__dir__ = listing(__name__, __all__)

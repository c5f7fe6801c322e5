"""The steps of the pipeline: each a public function, and a command of the same name."""

from typing import TYPE_CHECKING

from hepdask._face import listing, modules_on_demand

__all__ = [
    "evaluate", "export", "import_published", "inspect", "new_project", "predict", "prepare", "run",
    "simulate", "submit", "train", "tune",
]  # fmt: skip

__dir__ = listing(__name__, __all__)
if not TYPE_CHECKING:
    __getattr__ = modules_on_demand(__name__, __all__)

"""Which models there are, and what each takes: all of it follows from the settings of the models."""

from __future__ import annotations

from typing import Any

from hepdask.config import Models, Optimised


def settings_type(name: str) -> Any:
    """Return the class of the settings of a model: of `hlf`, `config.HLF`."""
    return Models.model_fields[name].annotation


def takes(name: str) -> set[str]:
    """Name the inputs of a model: ``"high_level"``, ``"particles"`` or both."""
    keys = settings_type(name).model_fields
    return {
        given
        for given, key in (("high_level", "features"), ("particles", "particle_features"))
        if key in keys
    }


#: Models that ranks train together, and those that are not.
NETWORKS = tuple(name for name in Models.model_fields if issubclass(settings_type(name), Optimised))
TREES = tuple(name for name in Models.model_fields if name not in NETWORKS)

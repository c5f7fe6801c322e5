"""What a step needs that the core does not bring, asked before anything is started."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence

from hepdask.config import Config, Forest
from hepdask.errors import MissingDependency
from hepdask.extras import require, require_for_addresses
from hepdask.input.fileset import require_readers
from hepdask.models import NETWORKS, settings


def require_for_run(config: Config) -> None:
    """Refuse a whole run for which something is missing.

    Raises
    ------
    MissingDependency
        An extra is not installed, or more than one rank is asked for without Horovod; nothing was started.
    """
    if config.simulation:
        require("simulate", "simulation")
    require_readers(config)
    require_for_addresses([config.store.path] if config.store.path else [])
    require_for_models(config, config.training.models)


def require_for_models(config: Config, names: Sequence[str]) -> None:
    """Refuse to train, score or search models whose library is not installed.

    Parameters
    ----------
    config : Config
        Uses `models` and `training.ranks`.
    names : sequence of str
        The models.

    Raises
    ------
    MissingDependency
        As in `require_for_run`.
    """
    for name in names:
        if name in NETWORKS:
            require("train", f"model {name}")
            _require_horovod(config)
        else:
            chosen = settings(name, config.models)
            if not (isinstance(chosen, Forest) and chosen.library == "sklearn"):
                require("trees", f"model {name}")


def _require_horovod(config: Config) -> None:
    if config.training.ranks > 1 and importlib.util.find_spec("horovod") is None:
        raise MissingDependency(
            f"training.ranks is {config.training.ranks}, and more than one rank needs Horovod, which is not "
            "installed: install a C++ compiler, cmake and make (on Debian and Ubuntu: apt install g++ cmake "
            "make), then say: make horovod; or train on one rank: --set training.ranks=1"
        )

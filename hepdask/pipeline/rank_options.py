"""How ranks are run, by the section `training` of the configuration."""

from __future__ import annotations

from hepdask.config.training import Training
from hepdask.distributed import RankOptions
from hepdask.errors import HepdaskError


def rank_options(training: Training) -> RankOptions:
    """Return what all ranks of the pipeline have in common: their size, ports and bounds.

    They start again `training.restarts` times, with all of them: only whoever keeps a checkpoint can go on with fewer.
    An error of hepdask itself is final.
    """
    return RankOptions(
        timeout=training.start_timeout,
        silence_timeout=training.silence_timeout,
        cores_per_rank=training.cores_per_rank,
        gpus_per_rank=training.gpus_per_rank,
        interface=training.interface,
        port_range=training.port_range,
        restarts=training.restarts,
        regroup_timeout=training.regroup_timeout,
        give_up_on=HepdaskError,
    )

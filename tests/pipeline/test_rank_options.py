"""How the pipeline runs its ranks: as the section `training` of the configuration says."""

from __future__ import annotations

from dataclasses import fields

from hepdask.config.training import Training
from hepdask.distributed import RankOptions
from hepdask.errors import HepdaskError
from hepdask.pipeline.rank_options import rank_options

#: Each setting, and the option that it becomes.
SETTINGS = {
    "start_timeout": ("timeout", 1.5),
    "silence_timeout": ("silence_timeout", 2.5),
    "cores_per_rank": ("cores_per_rank", 3),
    "gpus_per_rank": ("gpus_per_rank", 4),
    "interface": ("interface", "ib0"),
    "port_range": ("port_range", (1000, 2000)),
    "restarts": ("restarts", 5),
    "regroup_timeout": ("regroup_timeout", 6.5),
}


def test_every_setting_arrives():
    training = Training(**{name: value for name, (_, value) in SETTINGS.items()})
    options = rank_options(training)
    expected = dict(SETTINGS.values()) | {"give_up_on": HepdaskError}
    for field in fields(RankOptions):
        default = getattr(RankOptions(), field.name)
        assert getattr(options, field.name) == expected.get(field.name, default)
        assert field.name not in expected or expected[field.name] != default, "the test would see nothing"

"""What is known of each model by its settings, against what is written here once more."""

from typing import get_args

import pytest

from hepdask.config import ModelName, Models
from hepdask.models.kinds import NETWORKS, TREES, settings_type, takes

BOTH = {"high_level", "particles"}


def test_every_model_has_a_name_and_settings():
    assert get_args(ModelName) == tuple(Models.model_fields)
    assert set(NETWORKS) >= {"hlf", "sequence", "inclusive"}
    assert TREES == ("xgboost", "forest")
    assert not set(NETWORKS) & set(TREES)


@pytest.mark.parametrize(
    ("name", "inputs", "files"),
    [
        ("hlf", {"high_level"}, {"model.keras"}), ("sequence", {"particles"}, {"model.keras"}),
        ("inclusive", BOTH, {"model.keras"}), ("xgboost", {"high_level"}, {"model.ubj"}),
        ("forest", {"high_level"}, {"model.npz", "model.ubj"}),
    ],
)  # fmt: skip
def test_inputs_and_files(name, inputs, files):
    assert takes(name) == inputs
    assert set(settings_type(name).files) == files

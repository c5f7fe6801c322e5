"""What benchmarks are made from: their synthetic stores are stores."""

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import stores

from hepdask import open_store
from hepdask.pipeline.inspect import inspect


def test_a_synthetic_store_is_a_whole_one(tmp_path):
    lengths = stores.lengths(300, 20, seed=1)
    made = stores.make_store(tmp_path / "store", lengths)
    store = open_store(tmp_path / "store")
    events = store.events()
    assert sorted(np.diff(events.offsets)) == sorted(lengths)
    assert len(made) == len(store) == 300
    assert set(np.bincount(events.label)) == {100}
    assert inspect(tmp_path / "store", deep=True)

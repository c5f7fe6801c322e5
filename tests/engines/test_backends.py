"""The same networks on PyTorch and JAX as on TensorFlow, forward and backward, and against arithmetic in float64.

PyTorch and JAX are not part of the pinned environment: where they are not installed, these tests are skipped.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import on_backend
from helpers.padded_oracle import in_float64


@pytest.fixture(scope="module")
def computed(tmp_path_factory):
    """Give what a backend computes, in a process of its own; it is asked once."""
    folder, kept = tmp_path_factory.mktemp("backends"), {}

    def on(backend):
        if backend not in kept:
            path, script = folder / f"{backend}.npz", Path(on_backend.__file__)
            environment = os.environ | {"KERAS_BACKEND": backend, "JAX_PLATFORMS": "cpu"}
            subprocess.run([sys.executable, str(script), str(path)], env=environment, check=True, timeout=300)
            with np.load(path) as file:
                kept[backend] = {
                    network: [file[f"{network} {place}"] for place in range(len(file.files))
                              if f"{network} {place}" in file.files]
                    for network in on_backend.NETWORKS
                }  # fmt: skip
        return kept[backend]

    return on


@pytest.fixture(params=["torch", "jax"])
def backend(request):
    if importlib.util.find_spec(request.param) is None:
        pytest.skip(f"{request.param} is not installed")
    return request.param


def close(found, wanted, tolerance):
    """Equal to a part of the largest value of each tensor; what is zero in exact arithmetic may be noise."""
    assert len(found) == len(wanted) > 1
    for mine, theirs in zip(found, wanted, strict=True):
        assert mine.shape == theirs.shape
        assert np.abs(mine - theirs).max() <= tolerance * np.abs(theirs).max() + 1e-7


def test_networks_are_those_of_tensorflow(computed, backend):
    wanted = computed("tensorflow")
    for network, found in computed(backend).items():
        # means over particles are summed in another order
        close(found, wanted[network], 2e-4 if "transformer" in network else 1e-5)


@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_recurrence_is_that_of_float64(computed, backend, cell):
    """Among the events are one without particles, one of one and one of 801."""
    network = f"sequence-{cell}"
    rows, _, label = on_backend.events()
    weights = on_backend.built(network).get_weights()
    scores, _, gradients = in_float64(cell, weights, rows, on_backend.LENGTHS, label, np.ones(len(label)))
    close(computed(backend)[network], [scores, *gradients], 1e-5)

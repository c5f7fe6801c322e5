"""The section `training`: ranks, restarts and bounds."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from hepdask.config.base import Count, Port, Positive, Section
from hepdask.config.models import ModelName


class Training(Section):
    """How models are trained."""

    models: tuple[ModelName, ...] = Field(
        ("hlf", "inclusive"), min_length=1, description="models that `train` and `run` train, in this order"
    )
    ranks: Count = Field(
        1, description="number of processes that train together (more than one requires Horovod)"
    )
    cores_per_rank: Count = Field(1, description="cores per rank, which are Dask threads of one worker")
    seed: int = Field(1, ge=0, description="seed of initial weights, shuffling and dropout")
    memory_gib: Positive = Field(
        4.0, description="memory per rank for events [GiB]; what does not fit is streamed"
    )
    window: Count = Field(8192, description="number of shuffled events that are sorted by length together")
    class_weights: dict[str, Positive] = Field(
        default_factory=dict, description="{class: weight} in the loss; default: 1"
    )
    early_stopping: Count | None = Field(
        None,
        description="epochs without a better val_loss after which training stops; the best weights are kept",
    )
    rate_per_rank: bool = Field(
        False, description="multiply the learning rates by the number of ranks, as the published scripts do"
    )
    kernel: bool = Field(
        True,
        description="use the compiled kernels for dense stacks and, on CPUs, GRU and LSTM; otherwise TensorFlow",
    )
    precision: Literal["float32", "mixed_float16"] = Field(
        "float32",
        description="Keras' precision policy for networks on particles; `mixed_float16` only on GPUs",
    )
    from_study: bool = Field(
        False, description="use the best settings found by `tune`, for the models that were tuned"
    )
    start_timeout: Positive = Field(
        300.0, description="longest wait for the ranks to be placed and to start [s]"
    )
    gpus_per_rank: int | None = Field(
        None, ge=0, description="GPUs per rank (Dask resource `GPU`); default: one if the workers offer any"
    )
    interface: str | None = Field(
        None, description="network interface between the ranks; default: that of Dask's addresses"
    )
    port_range: tuple[Port, Port] | None = Field(
        None, description="first and last port for the rendezvous server; default: any"
    )
    restarts: int = Field(
        2, ge=0, description="number of restarts from the last epoch after a rank or its worker died"
    )
    min_ranks: Count = Field(1, description="fewest ranks to restart with if workers are gone for good")
    regroup_timeout: float = Field(
        30.0, ge=0, description="how long a restart waits for workers to come back [s]"
    )
    silence_timeout: Positive = Field(
        3600.0, description="time without progress after which a rank counts as dead [s]"
    )

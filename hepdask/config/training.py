"""The section `training`: ranks, restarts and bounds."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from hepdask.config.base import Count, Port, Positive, Section
from hepdask.config.models import ModelName


class Training(Section):
    """How models are trained."""

    models: tuple[ModelName, ...] = Field(
        ("hlf", "inclusive"), min_length=1, description="what `train` and `run` train, in this order"
    )
    ranks: Count = Field(1, description="processes that train together (Horovod where more than one)")
    cores_per_rank: Count = Field(1, description="cores, and Dask threads of one worker, a rank takes")
    seed: int = Field(1, ge=0, description="seed of initial weights, shuffling and dropout")
    memory_gib: Positive = Field(
        4.0, description="memory of a rank for events [GiB]; what does not fit is streamed"
    )
    window: Count = Field(8192, description="shuffled events that are sorted by length together")
    class_weights: dict[str, Positive] = Field(
        default_factory=dict, description="{class: weight} in the loss; default 1"
    )
    early_stopping: Count | None = Field(
        None, description="epochs without a better val_loss after which training stops, at the best weights"
    )
    rate_per_rank: bool = Field(
        False, description="multiply the learning rates by the number of ranks, as the published scripts do"
    )
    kernel: bool = Field(
        True, description="use the compiled kernels: dense stacks, and on a CPU GRU and LSTM; else TensorFlow"
    )
    precision: Literal["float32", "mixed_float16"] = Field(
        "float32", description="of networks on particles, in Keras' words; `mixed_float16` on GPUs alone"
    )
    from_study: bool = Field(
        False, description="take the best settings that `tune` found, for the models that were tuned"
    )
    start_timeout: Positive = Field(
        300.0, description="longest wait for the ranks to be placed and to start [s]"
    )
    gpus_per_rank: int | None = Field(
        None, ge=0, description="GPUs (Dask resource `GPU`) of a rank; default one where workers offer any"
    )
    interface: str | None = Field(
        None, description="network interface between the ranks; default the one of Dask's addresses"
    )
    port_range: tuple[Port, Port] | None = Field(
        None, description="first and last port the rendezvous server may take; default any"
    )
    restarts: int = Field(
        2, ge=0, description="times to go on from the last epoch after a rank or its worker died"
    )
    min_ranks: Count = Field(1, description="... with as few ranks as this where workers are gone for good")
    regroup_timeout: float = Field(30.0, ge=0, description="... after waiting for workers to come back [s]")
    silence_timeout: Positive = Field(
        3600.0, description="longest time without progress, after which a rank counts as dead [s]"
    )

"""The section `store`: where prepared events go."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from hepdask.config.base import LocalPath, Positive, Section


class Store(Section):
    """Where prepared events go, and how they are kept."""

    moved: ClassVar[dict[str, str]] = {
        key: f"input.{key}"
        for key in ("routes", "read_retries", "retry_wait", "chunk_memory", "chunk_events", "xrootd")
    }

    path: LocalPath | None = Field(
        None,
        description="the Zarr store: a folder, or an address such as s3://bucket/name; default: OUTPUT/store.zarr",
    )
    codec: Literal["lz4", "zstd"] = Field(
        "lz4", description="compressor: `lz4`, or `zstd`, which makes smaller parts and takes twice the time"
    )
    mantissa_bits: int = Field(
        23,
        ge=4,
        le=23,
        description="mantissa bits kept of the particles' floats; 23 is full float32, 10 a precision of about 1e-3",
    )
    worker_timeout: Positive = Field(300.0, description="longest time without any worker [s]")
    max_lost_fraction: float = Field(
        0.0, ge=0, le=1, description="fraction of the input entries that may be lost before the run fails"
    )

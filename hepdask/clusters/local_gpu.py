"""A cluster of this machine's GPUs, one worker each, by dask-cuda; and what it needs, looked for before it starts."""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hepdask.clusters.settings import GPU
from hepdask.distributed.gpu_claims import NoDriver, host_devices, visible
from hepdask.errors import ClusterError, MissingDependency

if TYPE_CHECKING:
    from distributed import LocalCluster


@dataclass(frozen=True)
class Need:
    """One thing that the cluster cannot do without.

    Attributes
    ----------
    name : str
        What.
    found : str
        What there is of it.
    fix : str
        What to do where it is missing; empty where it is there.
    package : bool
        Whether it is a Python package.
    """

    name: str
    found: str
    fix: str = ""
    package: bool = False


def needs(settings: GPU) -> list[Need]:
    """Look for the driver, for GPUs that can be seen, and for the packages that the settings ask for."""
    found = [_gpus(settings)]
    packages = [("dask_cuda", "dask-cuda", "kind: gpu", "pip install 'hepdask[gpu]'")]
    if settings.uses_rmm:
        packages.append(("rmm", "rmm", "rmm_pool_size and rmm_managed_memory", "pip install 'hepdask[gpu]'"))
    if settings.protocol == "ucx":
        packages.append(
            ("distributed_ucxx", "distributed-ucxx", "protocol: ucx", "pip install distributed-ucxx-cu12")
        )
    for module, name, key, fix in packages:
        there = importlib.util.find_spec(module) is not None
        said = "is installed" if there else f"is not installed, and {key} needs it"
        found.append(Need(name, f"{name} {said}", "" if there else fix, package=True))
    return found


def _gpus(settings: GPU) -> Need:
    name = "NVIDIA driver and GPUs"
    try:
        host = host_devices()
    except NoDriver as missing:
        fix = "run it on a machine with an NVIDIA GPU and its driver, or without a GPU: --cluster local"
        return Need(name, f"no NVIDIA driver: {missing}", fix)
    chosen = settings.cuda_visible_devices
    shown = {"CUDA_VISIBLE_DEVICES": ",".join(chosen)} if chosen else os.environ
    seen = visible(host, shown)
    if not seen or (chosen and len(seen) < len(chosen)):
        where = "cuda_visible_devices" if chosen else "CUDA_VISIBLE_DEVICES"
        said = shown.get("CUDA_VISIBLE_DEVICES")
        hidden = f", and {where} is {said!r}" if said is not None else ""
        fix = f"set {where} to GPUs that nvidia-smi -L lists, or request some from the batch system"
        return Need(name, f"the driver has {len(host)} GPU(s){hidden}: {len(seen)} can be used", fix)
    return Need(name, f"{len(seen)} of {len(host)} GPU(s) can be used: {', '.join(seen)}")


def start_gpu(settings: GPU, **options: Any) -> LocalCluster:
    """Start one worker for each GPU that is visible.

    Parameters
    ----------
    settings : GPU
        What was asked for.
    **options
        Arguments of `distributed.LocalCluster`, the same for all clusters of this machine.

    Raises
    ------
    MissingDependency
        A package is not installed.
    ClusterError
        There is no driver, no GPU, or none that can be seen; nothing was started.
    """
    missing = [need for need in needs(settings) if need.fix]
    if missing:
        kind = MissingDependency if all(need.package for need in missing) else ClusterError
        raise kind("cluster: kind gpu: " + "; and ".join(f"{need.found} ({need.fix})" for need in missing))
    try:
        from dask_cuda import LocalCUDACluster
    except ImportError as error:
        raise MissingDependency(
            f"cluster: kind gpu: dask-cuda is installed and cannot be imported ({error}): "
            "pip install 'hepdask[gpu]' in a separate environment"
        ) from error
    return LocalCUDACluster(resources={"GPU": 1}, **_options(settings), **options)


def _options(settings: GPU) -> dict[str, Any]:
    """Give dask-cuda's own arguments; those that are not said are left to it."""
    chosen = settings.cuda_visible_devices
    options = {
        "CUDA_VISIBLE_DEVICES": list(chosen) if chosen else None,
        "device_memory_limit": settings.device_memory_limit,
        "rmm_pool_size": settings.rmm_pool_size,
        "rmm_managed_memory": settings.rmm_managed_memory,
        "protocol": "tls" if settings.tls else settings.protocol,
        "enable_nvlink": settings.enable_nvlink,
        "enable_infiniband": settings.enable_infiniband,
        "local_directory": settings.local_directory,
    }
    return {key: value for key, value in options.items() if value is not None}


def seen_by_worker() -> tuple[list[str], list[str], str]:
    """Say which GPUs a worker sees: their names, what they really are, and what is wrong with the driver."""
    try:
        host, problem = host_devices(), ""
    except NoDriver as missing:
        host, problem = [], str(missing)
    seen = visible(host, os.environ)
    return list(seen), list(seen.values()), problem


def seen_by_rank() -> dict[str, str]:
    """Say what TensorFlow and Horovod can do with the GPU of this rank; nothing where all is well.

    Returns
    -------
    dict of str
        ``cuda``, ``cudnn`` and ``nccl``, each with what is wrong.
    """
    import tensorflow as tf

    wrong: dict[str, str] = {}
    if not tf.test.is_built_with_cuda():
        wrong["cuda"] = f"TensorFlow {tf.__version__} here is the one for CPUs"
    elif not tf.config.list_physical_devices("GPU"):
        wrong["cuda"] = (
            f"TensorFlow {tf.__version__} sees no GPU, with CUDA_VISIBLE_DEVICES="
            f"{os.environ.get('CUDA_VISIBLE_DEVICES', '(not set)')}"
        )
    if wrong:
        wrong["cudnn"] = "not tried: TensorFlow has no GPU"
    else:
        import keras
        import numpy as np

        try:
            layer = keras.layers.GRU(4, use_cudnn=True)
            layer(np.ones((2, 3, 5), np.float32), mask=np.array([[True, True, False], [True, True, True]]))
        except Exception as error:  # whatever CUDA says
            wrong["cudnn"] = f"a GRU fails: {type(error).__name__}: {str(error).splitlines()[0][:200]}"
    try:
        import horovod.tensorflow as hvd
    except ImportError as error:
        wrong["nccl"] = f"Horovod cannot be imported: {error}"
    else:
        if not hvd.nccl_built():
            wrong["nccl"] = (
                "Horovod was built without NCCL: ranks reduce gradients on the CPU, which is slower"
            )
    return wrong

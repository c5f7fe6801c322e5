"""Which kinds of cluster there are, and the settings of one from a name, a file, a mapping or an address."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hepdask.clusters.htcondor import HTCondor
from hepdask.clusters.settings import GPU, Attached, BatchSettings, Local
from hepdask.clusters.slurm import Slurm
from hepdask.config.document import read_document
from hepdask.config.validation import Named, Origin, Read, validate
from hepdask.errors import ConfigError
from hepdask.files.paths import resolved

_SHIPPED = (Path(__file__).parent.parent / "configs", Path(__file__).parent.parent.parent / "configs")

Settings = Local | GPU | Attached | BatchSettings

#: The settings of each kind of cluster.
KINDS: dict[str, type[Settings]] = {
    "local": Local, "gpu": GPU, "attached": Attached, "slurm": Slurm, "htcondor": HTCondor,
}  # fmt: skip


#: Those whose workers are batch jobs.
BATCH_KINDS = tuple(kind for kind, settings in KINDS.items() if issubclass(settings, BatchSettings))


def load_cluster(cluster: str | Mapping[str, Any]) -> Settings:
    """Resolve what a configuration or ``--cluster`` says.

    Parameters
    ----------
    cluster : str or mapping
        A name under ``configs/clusters/``, a YAML file, the connection file of ``hepdask cluster start``,
        ``tcp://…`` or ``tls://…``, or the settings.

    Returns
    -------
    Local, GPU, Attached or BatchSettings
        Settings of a cluster to start, or to attach to.

    Raises
    ------
    ConfigError
        There is no such cluster, or a setting is wrong.
    """
    if isinstance(cluster, Mapping):
        return _of_kind(dict(cluster), Named("cluster"))
    if re.match(r"^[a-z]+://", cluster):
        return Attached(address=cluster)
    is_file = cluster.endswith((".yaml", ".yml", ".json"))
    folders = [folder / "clusters" for folder in (Path("configs"), *_SHIPPED)]
    try:
        file = Path(resolved(cluster)) if is_file else None
    except ValueError as error:
        raise ConfigError(f"cluster: {error}") from None
    candidates = [file] if file else [folder / f"{cluster}.yaml" for folder in folders]
    for path in candidates:
        if path.is_file():
            document = read_document(path)
            return _of_kind(document.value, Read(document))
    known = sorted({path.stem for folder in folders for path in folder.glob("*.yaml")})
    raise ConfigError(f"cluster: {cluster!r} is neither a file, an address, nor one of: {', '.join(known)}")


def _of_kind(document: dict[str, Any], origin: Origin) -> Settings:
    kind = document.get("kind", "local")
    if not isinstance(kind, str) or kind not in KINDS:
        raise ConfigError(f"{origin.at(('kind',))}: kind: {kind!r} is not one of: {', '.join(KINDS)}")
    return validate(KINDS[kind], document, origin)

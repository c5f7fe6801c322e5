"""The whole document, and how it is read, completed and checked.

Every section is a frozen pydantic model. Unknown keys are refused with the nearest known key, and every error names the
file, the line and the path inside the document.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar

import yaml
from pydantic import BeforeValidator, Field, model_validator

from hepdask.config.base import DatasetName, LocalPath, Section
from hepdask.config.document import Document, read_document
from hepdask.config.input import Dataset, Input
from hepdask.config.models import Models
from hepdask.config.simulation import Sample
from hepdask.config.split import Split
from hepdask.config.store import Store
from hepdask.config.topology import Topology
from hepdask.config.training import Training
from hepdask.config.tuning import Tuning
from hepdask.config.user_names import refuse_likes
from hepdask.config.validation import Layers, Named, Read, find_key, validate
from hepdask.errors import ConfigError
from hepdask.files.folders import folder
from hepdask.files.paths import resolved


def _preset(analysis: Any) -> Any:
    """Take the name of the published analysis for all of its defaults."""
    if isinstance(analysis, str) and analysis != "topology":
        raise ValueError(f"no analysis is called {analysis!r}; write topology, or its keys")
    return {} if analysis == "topology" else analysis


class Config(Section):
    """The whole document."""

    moved: ClassVar[dict[str, str]] = {"physics": "analysis"}

    output: LocalPath = Field(
        "runs/default", description="folder for everything the run produces", validate_default=True
    )
    simulation: dict[LocalPath, Sample] = Field(
        default_factory=dict, description="{file: sample}: files that `run` simulates first"
    )
    fileset: dict[DatasetName, Dataset] = Field(
        default_factory=dict,
        description="{dataset: {files, metadata}}, or the path of a JSON or YAML file with it",
    )
    input: Input = Field(default_factory=Input, description="how the files are read")
    analysis: Annotated[Topology, BeforeValidator(_preset)] = Field(
        default_factory=Topology,
        description="what is computed from each event: `topology`, the published analysis, or its keys",
    )
    store: Store = Field(default_factory=Store, description="the store of prepared events")
    split: Split = Field(default_factory=Split, description="training and test samples")
    models: Models = Field(default_factory=Models, description="architecture and optimisation of each model")
    training: Training = Field(default_factory=Training, description="training")
    tuning: Tuning = Field(default_factory=Tuning, description="search for the best settings of a model")
    cluster: str | dict[str, Any | dict[str, Any]] = Field(
        "local",
        description="a name under configs/clusters/, a file, the address of a running scheduler, or the settings",
    )

    @model_validator(mode="after")
    def _nothing_is_doubled(self) -> Config:
        for key, words in (
            ("analysis.classes", self.analysis.classes),
            ("training.models", self.training.models),
        ):
            if len(set(words)) != len(words):
                raise ValueError(f"{key} names something twice: {', '.join(words)}")
        unknown = sorted(set(self.training.class_weights) - set(self.analysis.classes))
        if unknown:
            raise ValueError(
                f"training.class_weights: {unknown[0]!r} is not one of analysis.classes "
                f"({', '.join(self.analysis.classes)})"
            )
        ports = self.training.port_range
        if ports and ports[0] > ports[1]:
            raise ValueError(f"training.port_range goes from {ports[0]} down to {ports[1]}")
        if self.training.min_ranks > self.training.ranks:
            raise ValueError(
                f"training.min_ranks is {self.training.min_ranks}, training.ranks only {self.training.ranks}"
            )
        return self

    @model_validator(mode="after")
    def _names_stay_apart(self) -> Config:
        analysis = self.analysis
        refuse_likes("fileset", self.fileset)
        refuse_likes("analysis.classes", analysis.classes)
        refuse_likes("analysis.selections", analysis.selections)
        refuse_likes("analysis.features", analysis.features, ours=True)
        return self

    @model_validator(mode="after")
    def _labels_are_classes(self) -> Config:
        for name, dataset in self.fileset.items():
            label = dataset.metadata["label"]
            if label not in self.analysis.classes:
                raise ValueError(
                    f"fileset.{name}.metadata.label is {label!r}, not one of analysis.classes "
                    f"({', '.join(self.analysis.classes)})"
                )
        return self

    @property
    def folder(self) -> Path:
        """Folder of everything the run makes."""
        return Path(self.output)

    @property
    def store_path(self) -> Path:
        """The Zarr store; a `upath.UPath` where it is not on a file system."""
        return folder(self.store.path) if self.store.path else self.folder / "store.zarr"

    def to_yaml(self) -> str:
        """Print the document with every key and its value."""
        return yaml.safe_dump(json.loads(self.model_dump_json()), sort_keys=False, width=100)


def load_config(path: str | Path | None, overrides: Mapping[str, Any] | None = None) -> Config:
    """Read, complete and check a configuration.

    Parameters
    ----------
    path : str, Path or None
        A YAML document; None for the defaults alone.
    overrides : mapping, optional
        ``{"section.key": value}``, applied on top of the document. Below a mapping whose keys are yours, such as
        ``analysis.branches``, the rest is one key: ``{"analysis.branches.EFlowTrack.PT": "track_pt"}``.

    Returns
    -------
    Config
        The validated configuration. ``output`` defaults to ``runs/<name of the document>``.

    Raises
    ------
    ConfigError
        The document cannot be read, or a key or value in it is wrong; the message gives its line and its path.
    """
    value: dict[str, Any] = {}
    layers = Layers(Named("configuration"))
    if path is not None:
        document = read_document(Path(path))
        layers = Layers(Read(document))
        value = {"output": f"runs/{Path(path).stem}", **document.value}
    for key, given in (overrides or {}).items():
        words = key.split(".")
        if words[0] == "fileset" and len(words) > 1:
            value = _with_fileset(value, layers)
        at = f"--set {key}"
        try:
            keys = find_key(Config, words, value)
        except ConfigError as error:
            raise ConfigError(f"{at}: {error}") from None
        is_read = isinstance(given, Document)
        value = _assigned(value, keys, given.value if is_read else given, at)
        layers.add(keys, Read(given) if is_read else Named(at))
    return validate(Config, _with_fileset(value, layers), layers)


def _with_fileset(value: dict[str, Any], layers: Layers) -> dict[str, Any]:
    """Put in the fileset that stands in a file of its own."""
    if not isinstance(named := value.get("fileset"), str):
        return value
    try:
        document = read_document(Path(resolved(named)))
    except (ConfigError, ValueError) as error:
        raise ConfigError(f"{layers.at(('fileset',))}: fileset: {error}") from None
    layers.add(("fileset",), Read(document))
    return value | {"fileset": document.value}


def _assigned(value: Any, keys: tuple[Any, ...], given: Any, at: str) -> Any:
    """Give a copy with one value changed: aliases in a document share what they stand for."""
    if not keys:
        return given
    if not isinstance(value, Mapping | None):
        raise ConfigError(
            f"{at}: what is there is not a mapping, so nothing below it can be set; set it as a whole"
        )
    key, *rest = keys
    below = (value or {}).get(key)
    return {**(value or {}), key: _assigned(below, tuple(rest), given, at)}

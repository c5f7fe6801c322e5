"""The configuration: one YAML document, checked before anything starts.

Every section is a frozen pydantic model. Unknown keys are refused with the nearest known key, and
every error names the path inside the document.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from hepdask.document import Document, read_document
from hepdask.errors import ConfigError
from hepdask.folders import folder
from hepdask.names import HIGH_LEVEL, refuse_likes, usable, usable_dataset
from hepdask.paths import resolved, split_tree
from hepdask.user_functions import FunctionKey
from hepdask.validation import Layers, Named, Read, find_key, model_of, validate

Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(gt=0, lt=2**31)]
Port = Annotated[int, Field(gt=0, lt=2**16)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Share = Annotated[float, Field(gt=0, le=1)]
ModelName = Literal["hlf", "sequence", "inclusive", "xgboost", "forest"]
#: The name of something of the user's: it stands in reports, and in the names of files.
Name = Annotated[str, AfterValidator(usable)]
DatasetName = Annotated[str, AfterValidator(usable_dataset)]
#: A path on this machine's file systems, or a URL.
LocalPath = Annotated[str, AfterValidator(resolved)]
OptimizerName = Literal["adam", "sgd", "rmsprop"]


#: The tree of a file of which nothing else is said.
DEFAULT_TREE = "Delphes"


class Section(BaseModel):
    """A part of the configuration: immutable, and closed to unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Sample(Section):
    """One file that `hepdask simulate` makes."""

    process: Literal["ttbar", "wjets", "qcd"] = Field(description="physics process")
    events: Count = Field(description="events written to the file")
    seed: int = Field(1, ge=0, description="seed of everything random in the file")
    pileup: float = Field(0.0, ge=0, description="mean number of overlaid minimum-bias collisions")
    enrich: bool = Field(
        True, description="QCD only: make events that contain a hard, loosely isolated lepton"
    )


class File(Section):
    """One file of a dataset, in the form that coffea's `preprocess` gives, and with a checksum if there is one."""

    object_path: str | None = Field(
        None, description="name of the tree or RNTuple; default the one in `path.root:Tree`, else `Delphes`"
    )
    num_entries: int | None = Field(None, ge=0, description="its entries")
    steps: tuple[tuple[int, int], ...] | None = Field(
        None, description="ranges of entries to read, each at once; default all"
    )
    uuid: str | None = Field(None, description="the UUID it must have")
    checksum: str | None = Field(
        None,
        pattern=r"^(adler32|md5|sha1|sha256|sha512):[0-9a-fA-F]+$",
        description="`adler32:…`, `md5:…`, `sha256:…`: the whole file is read and compared before it is used",
    )
    format: Literal["root"] | None = Field(None, description="what coffea calls the format")
    num_selected_entries: int | None = Field(
        None, description="as coffea writes it; not used, as are the next two"
    )
    lfn: str | None = Field(None, description="logical file name")
    pfn: str | None = Field(None, description="physical file name")

    @field_validator("steps")
    @classmethod
    def _hold_something(cls, steps: tuple[tuple[int, int], ...] | None) -> tuple[tuple[int, int], ...] | None:
        """Leave out 0 to 0, as coffea writes for a file without entries."""
        return steps and tuple(step for step in steps if step != (0, 0))

    @model_validator(mode="after")
    def _steps_are_in_order(self) -> File:
        last = 0
        for start, stop in self.steps or ():
            if not last <= start < stop or (self.num_entries is not None and stop > self.num_entries):
                raise ValueError(
                    f"steps: {start} to {stop} is empty, overlaps others, or lies outside the file"
                )
            last = stop
        return self


def _shape(value: Any) -> str | None:
    """Tell members of unions apart by what a value looks like, so that an error speaks of one of them."""
    if isinstance(value, str) or value is None:
        return "name"
    if isinstance(value, Mapping | BaseModel):
        return "mapping"
    return "list" if isinstance(value, list | tuple) else None


_Tree = Annotated[
    Annotated[str | None, Tag("name")] | Annotated[File, Tag("mapping")],
    Discriminator(
        _shape,
        custom_error_type="text",
        custom_error_message="give the name of the tree, or {object_path, steps, num_entries, uuid, checksum}",
    ),
]
_Files = Annotated[
    Annotated[dict[LocalPath, _Tree], Tag("mapping")] | Annotated[list[LocalPath], Tag("list")],
    Discriminator(
        _shape,
        custom_error_type="files",
        custom_error_message="give {path: tree}, or a list of paths",
    ),
]


# read and let go: it would travel to every worker
_Unused = Annotated[str | None, AfterValidator(lambda _: None)]


class Dataset(Section):
    """One dataset of a fileset, in coffea's format."""

    files: _Files = Field(
        description="{path: tree}, {path: {object_path, steps, num_entries, uuid, checksum}}, or a list of paths (tree "
        "`Delphes`, or `path.root:Tree`); globs and root:// directories expand"
    )
    metadata: dict[str, Any] = Field(
        description="must hold `label`, the name of the class; other keys are kept"
    )
    format: Literal["root"] | None = Field(None, description="what coffea calls the format", exclude=True)
    form: _Unused = Field(
        None, description="as coffea writes it; not used, as are the next two", exclude=True
    )
    compressed_form: _Unused = Field(None, description="form of its events, compressed", exclude=True)
    did: _Unused = Field(None, description="its name in Rucio", exclude=True)

    @model_validator(mode="after")
    def _has_label(self) -> Dataset:
        if "label" not in self.metadata:
            raise ValueError("metadata.label is missing: give the name of the class these events belong to")
        if not isinstance(self.metadata["label"], str):
            raise PydanticCustomError("text", "metadata.label is the name of a class, a text")
        for path, file in self._named:
            _, tree = split_tree(path)
            said = file if isinstance(file, str) else file and file.object_path
            if tree and said and tree != said:
                raise ValueError(f"files.{path}: the tree is {tree} in the path, and {said} behind it")
        return self

    @property
    def _named(self) -> list[tuple[str, str | File | None]]:
        if isinstance(self.files, dict):
            return list(self.files.items())
        return [(path, None) for path in self.files]

    @property
    def trees(self) -> list[tuple[str, str, File]]:
        """Path (or pattern), name of the tree, and what is known of the file."""
        found = []
        for named, file in self._named:
            path, tree = split_tree(named)
            known = File(object_path=file) if isinstance(file, str) else file or File()
            found.append((path, tree or known.object_path or DEFAULT_TREE, known))
        return found


class Collections(Section):
    """Names of the collections in the input files (Delphes' own by default)."""

    track: str = Field("EFlowTrack", description="charged candidates")
    photon: str = Field("EFlowPhoton", description="photon candidates")
    neutral: str = Field("EFlowNeutralHadron", description="neutral-hadron candidates")
    electron: str = Field("Electron", description="reconstructed electrons")
    muon: str = Field("MuonTight", description="reconstructed muons")
    jet: str = Field("Jet", description="jets with their b-tag")
    met: str = Field("MissingET", description="missing transverse momentum, one an event")
    generator: str = Field(
        "GenInfo", description="if present, its field Parent keeps events of one parent in one split"
    )


class Physics(Section):
    """What an event is reduced to. Defaults are those of Migliorini et al. (2019)."""

    classes: tuple[Name, ...] = Field(
        ("qcd", "ttbar", "wjets"), min_length=1, description="names of the classes; the index is the label"
    )
    convention: Literal["corrected", "reference"] = Field(
        "corrected",
        description="`corrected`, or the published pipeline's numbers: `reference` (docs/physics.md)",
    )
    collections: Collections = Field(default_factory=Collections, description="collection names")
    branches: dict[str, str] = Field(
        default_factory=dict,
        description="{Collection.Field: branch}: branches of the files that are called otherwise",
    )
    leptons: tuple[Literal["electron", "muon"], ...] = Field(
        ("electron", "muon"), min_length=1, description="flavours that may select an event"
    )
    selections: dict[Name, FunctionKey] = Field(
        default_factory=dict,
        description="{name: function}: further selections, `module:function` or `file.py:function`, events to bools",
    )
    features: dict[Name, FunctionKey] = Field(
        default_factory=dict,
        description="{name: function}: further high-level features, functions from selected events to numbers",
    )
    reads: dict[str, tuple[str, ...]] = Field(
        default_factory=dict,
        description="{collection: fields}: what these functions read beyond what is read anyway",
    )
    track_min_pt: float = Field(0.5, ge=0, description="charged candidates have pT above this [GeV]")
    photon_min_et: float = Field(1.0, ge=0, description="photon candidates have ET above this [GeV]")
    neutral_min_et: float = Field(1.0, ge=0, description="neutral-hadron candidates have ET above this [GeV]")
    max_tracks: Count = Field(450, description="most charged candidates kept an event")
    max_photons: Count = Field(150, description="most photons kept an event")
    max_neutrals: Count = Field(200, description="most neutral hadrons kept an event")
    isolation_cone: float = Field(
        0.3, ge=0.01, le=3.0, description="radius of the isolation cone in (eta, phi)"
    )
    own_track_cone: Positive = Field(1e-4, description="a track this close to a lepton is its own")
    lepton_min_pt: float = Field(23.0, ge=0, description="the selected lepton has pT above this [GeV]")
    lepton_max_isolation: Positive = Field(0.45, description="... and a summed relative isolation below this")
    jet_min_pt: float = Field(30.0, ge=0, description="counted jets have pT above this [GeV]")
    jet_max_abs_eta: Positive = Field(2.6, description="... and |eta| below this")

    @property
    def high_level_features(self) -> tuple[str, ...]:
        """Names of the high-level features: the 14, then the user's own."""
        return (*HIGH_LEVEL, *self.features)

    @property
    def max_particles(self) -> int:
        """Longest possible particle list: the lepton and the three capped kinds."""
        return 1 + self.max_tracks + self.max_photons + self.max_neutrals


class XRootD(Section):
    """Bounds of the XRootD client [s]; a dead server is noticed within about their sum."""

    connection_window: Count = Field(5, description="time for one attempt to connect")
    connection_retry: Count = Field(2, description="attempts to connect")
    request_timeout: Count = Field(30, description="time for one request")
    stream_timeout: Count = Field(15, description="time without data on an open connection")
    stream_error_window: Count = Field(30, description="time before a broken connection is tried again")

    def client_settings(self) -> dict[str, int]:
        """Give the settings by the client's own names."""
        return {
            "ConnectionWindow": self.connection_window,
            "ConnectionRetry": self.connection_retry,
            "RequestTimeout": self.request_timeout,
            "StreamTimeout": self.stream_timeout,
            "StreamErrorWindow": self.stream_error_window,
            "TimeoutResolution": 1,
            "RunForkHandler": 1,
        }


class Reading(Section):
    """How input is read, and what happens when it cannot be."""

    routes: tuple[str, ...] = Field(
        ("{url}",),
        min_length=1,
        description="addresses tried in turn: `{url}` is the one of the fileset, `{path}` the absolute path in it; "
        "for example `root://cache.example//{url}` or `root://other.example/{path}`",
    )
    read_retries: int = Field(
        2, ge=0, description="further rounds over all routes where none leads to the file"
    )
    retry_wait: float = Field(1.0, ge=0, description="wait before the first of them [s], doubled each time")
    chunk_memory: Count = Field(
        256, description="entries read at once fill about this much memory [MB, uncompressed branches]"
    )
    chunk_events: Count | None = Field(
        None, description="most entries read at once; default what chunk_memory allows"
    )
    xrootd: XRootD = Field(default_factory=XRootD, description="time-outs of root:// input")


class Store(Reading):
    """Where prepared events go and how input is read."""

    path: LocalPath | None = Field(
        None,
        description="the Zarr store, a folder or an address such as s3://bucket/name; default OUTPUT/store.zarr",
    )
    codec: Literal["lz4", "zstd"] = Field(
        "lz4", description="compressor: `lz4`, or `zstd`, which makes parts smaller and takes twice the time"
    )
    mantissa_bits: int = Field(
        23,
        ge=4,
        le=23,
        description="bits kept of the particles' fractions; 23 is float32 as it is, 10 about 1e-3",
    )
    worker_timeout: Positive = Field(300.0, description="longest time without any worker [s]")
    max_lost_fraction: float = Field(
        0.0, ge=0, le=1, description="share of input entries that may be lost before the run fails"
    )


class Split(Section):
    """Which event is trained on, and which is tested on; decided from the event's identity alone."""

    seed: int = Field(1, ge=0, description="seed of split, balance and validation sample")
    test_fraction: Fraction = Field(0.2, description="share of events kept for the test")
    validation_fraction: Fraction = Field(
        0.1, description="share of the training split watched during training, not trained on"
    )
    balance: bool = Field(True, description="train on equally many events of each class")


class Optimised(Section):
    """What all networks have: how they are optimised."""

    epochs: Count = Field(6, description="most passes over the training split")
    batch_size: Count = Field(128, description="events a step, over all ranks")
    optimizer: OptimizerName = Field("adam", description="`adam`, `sgd` or `rmsprop`, as in Keras")
    momentum: Fraction = Field(0.9, description="of `sgd`; the others do not look at it")
    learning_rate: Positive = Field(5e-4, description="of the optimizer")
    learning_rate_drops: dict[Count, Positive] = Field(
        default_factory=dict,
        description="{epoch: factor}: from this epoch on (the first is 1), the rate is less",
    )

    def rate(self, epoch: int) -> float:
        """Give the learning rate of an epoch, counted from 1."""
        passed = [at for at in self.learning_rate_drops if at <= epoch]
        return self.learning_rate * (self.learning_rate_drops[max(passed)] if passed else 1.0)


class HLF(Optimised):
    """Dense network on the high-level features (the paper's `HLF` classifier)."""

    epochs: Count = Field(30, description="most passes over the training split")
    learning_rate: Positive = Field(1e-3, description="of the optimizer")
    features: tuple[str, ...] | None = Field(None, description="high-level features it takes; default all")
    hidden: tuple[Count, ...] = Field((50, 20, 10), min_length=1, description="units of the hidden layers")
    activation: Literal["relu", "tanh", "elu"] = Field("relu", description="of the hidden layers")
    dropout: Fraction = Field(0.0, description="dropout after each hidden layer")


class Sequence(Optimised):
    """Recurrent network on the particles alone (the paper's `Particle-sequence` classifier)."""

    particle_features: tuple[str, ...] | None = Field(
        None, description="particle features it takes; default all"
    )
    cell: Literal["gru", "lstm", "transformer"] = Field(
        "gru", description="what reads the particles: `gru`, `lstm` or `transformer`"
    )
    units: Count = Field(50, description="width of the summary of an event's particles")
    dropout: Fraction = Field(0.2, description="dropout before the dense layers")


class Inclusive(Sequence):
    """Recurrent network on the particles, joined by the high-level features (`Inclusive` classifier)."""

    features: tuple[str, ...] | None = Field(None, description="high-level features it takes; default all")
    dense: Count = Field(25, description="units of the dense layer that joins both")


class XGBoost(Section):
    """Gradient-boosted trees on the high-level features."""

    features: tuple[str, ...] | None = Field(None, description="high-level features it takes; default all")
    rounds: Count = Field(500, description="most rounds; each adds one tree a class")
    early_stopping: Count | None = Field(
        20, description="rounds without a better val_loss after which boosting stops, at the best round"
    )
    max_depth: Count = Field(6, description="longest way from the root of a tree to a leaf")
    learning_rate: Positive = Field(0.1, description="factor on what each tree adds")
    min_child_weight: float = Field(1.0, ge=0, description="least sum of second derivatives in a leaf")
    subsample: Share = Field(1.0, description="share of the events each tree is grown on")
    feature_share: Share = Field(1.0, description="share of the features each tree may use")
    l2: float = Field(1.0, ge=0, description="penalty on the squares of the leaves' values")
    max_bin: Annotated[int, Field(ge=2, lt=2**16)] = Field(
        256, description="bins of a feature, at whose edges trees may split"
    )
    device: Literal["cpu", "cuda"] = Field("cpu", description="`cpu`, or `cuda` on workers with a GPU")


class Forest(Section):
    """Random forest on the high-level features."""

    features: tuple[str, ...] | None = Field(None, description="high-level features it takes; default all")
    library: Literal["sklearn", "xgboost"] = Field(
        "sklearn", description="`sklearn`: on one worker; `xgboost`: its random-forest mode, over all workers"
    )
    device: Literal["cpu", "cuda"] = Field(
        "cpu", description="`cpu`, or `cuda` on workers with a GPU, where cuML grows what `sklearn` does else"
    )
    trees: Count = Field(200, description="trees (of `xgboost`: for each class)")
    max_depth: Count = Field(12, description="longest way from the root of a tree to a leaf")
    min_leaf: Count = Field(
        5, description="fewest events of a leaf (of `xgboost`: least sum of second derivatives)"
    )
    feature_share: Share | None = Field(
        None,
        description="share of the features a split may choose from; default the square root of their number",
    )


class Models(Section):
    """Architecture and optimisation of each model."""

    hlf: HLF = Field(default_factory=HLF, description="dense network on high-level features")
    sequence: Sequence = Field(default_factory=Sequence, description="recurrent network on particles")
    inclusive: Inclusive = Field(
        default_factory=Inclusive, description="recurrent network on particles and high-level features"
    )
    xgboost: XGBoost = Field(default_factory=XGBoost, description="boosted trees on high-level features")
    forest: Forest = Field(default_factory=Forest, description="random forest on high-level features")


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


class Range(Section):
    """Numbers a parameter may take; whole ones where `low`, `high` and `step` are."""

    low: int | float = Field(description="least")
    high: int | float = Field(description="most")
    log: bool = Field(False, description="drawn evenly in the logarithm")
    step: int | float | None = Field(
        None, description="distance of neighbours; default any number, or any whole one"
    )

    @model_validator(mode="after")
    def _rises(self) -> Range:
        if self.low >= self.high:
            raise ValueError(f"low is {self.low}, high only {self.high}")
        if self.log and (self.low <= 0 or self.step is not None):
            raise ValueError("a logarithmic range starts above 0 and has no step")
        if self.step is not None and self.step <= 0:
            raise ValueError(f"step is {self.step}")
        return self


_Searched = Annotated[
    Annotated[list[Any], Tag("list")] | Annotated[Range, Tag("mapping")],
    Discriminator(
        _shape, custom_error_type="searched", custom_error_message="give [choices], or {low, high, log, step}"
    ),
]


class Tuning(Section):
    """What `tune` searches, and how."""

    model: ModelName = Field("hlf", description="the model that is tuned")
    parameters: dict[str, _Searched] = Field(
        default_factory=dict,
        description="{key of the model: [choices] or {low, high, log, step}}, for example `hidden: [[50, 20], [100]]`",
    )
    sampler: Literal["tpe", "random", "grid"] = Field(
        "tpe",
        description="`grid` tries every combination; the others draw `trials` of them, `tpe` near good ones",
    )
    trials: Count = Field(50, description="settings that `tpe` and `random` try")
    folds: Annotated[int, Field(ge=2, lt=128)] = Field(5, description="folds of the training split")
    metric: Literal["loss", "accuracy"] = Field("loss", description="what is best in the mean over the folds")
    prune_after: Count | None = Field(
        None, description="folds after which a setting worse than the median of those before is given up"
    )
    trial_timeout: Positive = Field(
        86400.0, description="longest time of a setting, after which it has failed [s]"
    )
    worker_timeout: Positive = Field(300.0, description="longest time without any worker [s]")


class Config(Section):
    """The whole document."""

    output: LocalPath = Field(
        "runs/default", description="folder of everything the run makes", validate_default=True
    )
    simulation: dict[LocalPath, Sample] = Field(
        default_factory=dict, description="{file: sample}: files that `run` makes first"
    )
    fileset: dict[DatasetName, Dataset] = Field(
        default_factory=dict,
        description="{dataset: {files, metadata}}, or the path of a JSON or YAML file that holds it",
    )
    physics: Physics = Field(default_factory=Physics, description="selection and features")
    store: Store = Field(default_factory=Store, description="reading and storing")
    split: Split = Field(default_factory=Split, description="training and test samples")
    models: Models = Field(default_factory=Models, description="architectures")
    training: Training = Field(default_factory=Training, description="training")
    tuning: Tuning = Field(default_factory=Tuning, description="search for the best settings of a model")
    cluster: str | dict[str, Any | dict[str, Any]] = Field(
        "local",
        description="name under configs/clusters/, a file, the address of a running scheduler, or the settings",
    )

    @model_validator(mode="after")
    def _nothing_is_doubled(self) -> Config:
        for key, words in (
            ("physics.classes", self.physics.classes),
            ("training.models", self.training.models),
        ):
            if len(set(words)) != len(words):
                raise ValueError(f"{key} names something twice: {', '.join(words)}")
        unknown = sorted(set(self.training.class_weights) - set(self.physics.classes))
        if unknown:
            raise ValueError(
                f"training.class_weights: {unknown[0]!r} is not one of physics.classes "
                f"({', '.join(self.physics.classes)})"
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
        physics = self.physics
        refuse_likes("fileset", self.fileset)
        refuse_likes("physics.classes", physics.classes)
        refuse_likes("physics.selections", physics.selections)
        refuse_likes("physics.features", physics.features, ours=True)
        return self

    @model_validator(mode="after")
    def _labels_are_classes(self) -> Config:
        for name, dataset in self.fileset.items():
            label = dataset.metadata["label"]
            if label not in self.physics.classes:
                raise ValueError(
                    f"fileset.{name}.metadata.label is {label!r}, not one of physics.classes "
                    f"({', '.join(self.physics.classes)})"
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
        ``physics.branches``, the rest is one key: ``{"physics.branches.EFlowTrack.PT": "track_pt"}``.

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


def reference() -> str:
    """Describe every key with its default, as Markdown."""
    lines = ["| key | default | meaning |", "| --- | --- | --- |"]
    lines += [f"| `{key}` | {default} | {text} |" for key, default, text in _keys(Config, "")]
    return "\n".join(lines)


def _keys(model: type[BaseModel], prefix: str) -> Iterator[tuple[str, str, str]]:
    for name, field in model.model_fields.items():
        key, text = prefix + name, (field.description or "").replace("|", "\\|")
        nested = model_of(field.annotation)
        if nested is not None:
            is_mapping = field.annotation is not nested
            if is_mapping:
                yield key, "`{}`", text
            yield from _keys(nested, f"{key}.NAME." if is_mapping else f"{key}.")
        elif field.is_required():
            yield key, "required", text
        else:
            default = field.get_default(call_default_factory=True)
            shown = json.dumps(list(default) if isinstance(default, tuple) else default)
            yield key, f"`{shown}`", text

"""Reading a store: events in a fixed order, as awkward arrays or flat columns."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import awkward as ak
import numpy as np
from numpy.typing import NDArray

from hepdask.analysis.scaling import Moments, Scaler
from hepdask.analysis.topology import expand_columns, sequences
from hepdask.analysis.topology.conventions import CONVENTIONS, Convention
from hepdask.config import Split, feature_names
from hepdask.store.checked_parts import CheckedParts
from hepdask.store.events import Events
from hepdask.store.layout import GIVEN_DTYPES, PARTICLE_DTYPES
from hepdask.store.split import balanced, event_hash, is_test, is_validation
from hepdask.store.split import folds as divide

Sample = Literal["train", "test", "fit", "validation"]


class Store:
    """Selected events with their features; see `opening.open_store`.

    Attributes
    ----------
    path : Path
        Folder of the store.
    manifest : dict
        What `prepare` recorded.
    fold : (int, int) or None
        See `opening.open_store`.
    """

    def __init__(self, path: Path, manifest: dict[str, Any], fold: tuple[int, int] | None = None) -> None:
        self.path = path
        self.manifest = manifest
        self.fold = fold
        self._marked: dict[Sample | None, list[NDArray[np.bool_]]] = {}
        self._parts = CheckedParts(path, manifest)

    def __len__(self) -> int:
        return sum(part["events"] for part in self.parts)

    def __repr__(self) -> str:
        return f"<Store {str(self.path)!r}: {len(self)} events of {', '.join(self.classes)}>"

    @property
    def features(self) -> dict[str, tuple[str, ...]]:
        """Names of the features, by kind."""
        return {"particles": feature_names.PARTICLE, "hlf": tuple(self.manifest["high_level_features"])}

    @property
    def classes(self) -> list[str]:
        """Names of the classes; the index is the label."""
        return list(self.manifest["classes"])

    @property
    def parts(self) -> list[dict[str, Any]]:
        """The parts in their fixed order: by dataset, file and entry."""
        return self.manifest["parts"]

    @property
    def fingerprint(self) -> str:
        """Digest of what the store holds; equal stores have equal ones."""
        content = [(part["name"], part["label"], part["events"], part["checksums"]) for part in self.parts]
        return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=16).hexdigest()

    @cached_property
    def split(self) -> Split:
        """How the events are divided."""
        return Split.model_validate(self.manifest["split"])

    @cached_property
    def particle_scaler(self) -> Scaler | None:
        """Standardisation of the 19 features, fitted on the training split's particles.

        None in the `reference` convention, which standardises event by event.
        """
        if self._convention.scales_by_event:
            return None
        return Scaler.standard(Moments.from_json(self.manifest["moments"]["particles"]))

    @cached_property
    def high_level_scaler(self) -> Scaler:
        """Min-max scaling of the 14 features, fitted on the training split; in `reference` on all events."""
        sample = "high_level_all" if self._convention.scales_by_event else "high_level"
        return Scaler.min_max(Moments.from_json(self.manifest["moments"][sample]))

    @property
    def _convention(self) -> Convention:
        return CONVENTIONS[self.manifest["analysis"]["convention"]]

    @property
    def imported(self) -> bool:
        """Whether the events came in the published layout: scaled, nobody knows by what, and padded."""
        return bool(self.manifest.get("imported"))

    @property
    def particle_dtypes(self) -> dict[str, str]:
        """Columns of the particles and their types: `feature_names.STORED`, or all 19 where events are imported."""
        return GIVEN_DTYPES if self.imported else PARTICLE_DTYPES

    @property
    def max_particles(self) -> int:
        """Longest possible particle list."""
        return int(self.manifest["max_particles"])

    def events(
        self, sample: Sample | None = None, parts: Sequence[int] | None = None, particles: bool = True
    ) -> Events:
        """Load events as flat columns.

        Parameters
        ----------
        sample : str, optional
            ``"train"`` or ``"test"``; ``"fit"`` and ``"validation"`` are the two shares of ``"train"``.
            Training samples hold equally many events of each class where the split says so. None for all.
        parts : sequence of int, optional
            Load only the events of these parts, part by part in this order.
        particles : bool
            Whether to load the particles; without them every event has an empty list.

        Returns
        -------
        Events
            In the fixed order of the store.
        """
        keep = self._members(sample)
        used = [index for index in (range(len(keep)) if parts is None else parts) if keep[index].any()]
        if not used:
            return Events.empty(len(self.features["hlf"]), self.particle_dtypes)
        return Events.concatenate([self._load(index, keep[index], particles) for index in used])

    def pieces(self, sample: Sample | None = None) -> Iterator[Events]:
        """Load the events of `events` part by part, for those who cannot hold all of them.

        Parameters
        ----------
        sample : str, optional
            As in `events`.

        Yields
        ------
        Events
            The events of one part; a part without any is left out.
        """
        for index in np.flatnonzero(self.counts(sample)):
            yield self.events(sample, parts=[int(index)])

    def counts(self, sample: Sample | None = None) -> NDArray[np.int64]:
        """Count the events of a sample in each part, int64 (n_parts,)."""
        return np.array([mask.sum() for mask in self._members(sample)], np.int64)

    def labels(self, sample: Sample | None = None) -> NDArray[np.int64]:
        """Class of each event of a sample, int64 (n,), without loading the features."""
        return np.repeat(
            np.array([part["label"] for part in self.parts], np.int64),
            [int(mask.sum()) for mask in self._members(sample)],
        )

    def folds(self, count: int) -> NDArray[np.int64]:
        """Divide the training split into folds by the identity of events, each class spread alike.

        Parameters
        ----------
        count : int
            Number of folds.

        Returns
        -------
        int64 (n,)
            Fold of each event of ``"train"``, in the order of the store; events of one parent share one.
        """
        hashes = [
            event_hash(
                self.split.seed, "folds", part["dataset"], part["origin"], self.column(index, "group")
            )[mask]
            for index, (part, mask) in enumerate(zip(self.parts, self._members("train"), strict=True))
        ]
        return divide(self.labels("train"), np.concatenate(hashes), count)

    def arrays(self, split: Literal["train", "test"] | None = None) -> ak.Array:
        """Load events as one awkward array.

        Parameters
        ----------
        split : {"train", "test"}, optional
            None for all events.

        Returns
        -------
        ak.Array
            One record per event, in the fixed order of the store, with the fields `particles` (list of
            records with the 19 features, lepton last), `hlf` (record with the 14), `label`, `dataset`,
            `file` and `entry`. Physical values in float32: GeV, mm, rad; of imported events what was given.
        """
        events = self.events(split)
        flat = ak.Array(events.particles if self.imported else expand_columns(events.particles))
        return ak.zip(
            {
                "particles": ak.unflatten(flat, np.diff(events.offsets)),
                "hlf": ak.Array(dict(zip(self.features["hlf"], events.high_level.T, strict=True))),
                "label": events.label,
                "dataset": self._strings("dataset", events.part),
                "file": self._strings("file", events.part),
                "entry": events.entry,
            },
            depth_limit=1,
        )

    def sequence(self, index: int) -> NDArray[np.float32]:
        """Compute one event as the recurrent network takes it.

        Parameters
        ----------
        index : int
            Place of the event in the fixed order of the store.

        Returns
        -------
        float32 (max_particles, 19)
            The scaled particles, farthest from the lepton first and the lepton last, then zeros; in the
            `reference` convention the published form, with its padding among the particles.

        Raises
        ------
        IndexError
            There is no such event.
        """
        if not -len(self) <= index < len(self):
            raise IndexError(f"event {index} of a store of {len(self)}")
        index %= len(self)
        for place, part in enumerate(self.parts):
            if index < part["events"]:
                event = self._load(place, np.arange(part["events"]) == index, True)
                return sequences(event.particles, event.offsets, self.max_particles, self.particle_scaler)[0]
            index -= part["events"]
        raise AssertionError("unreachable: the index was checked")

    def column(self, index: int, name: str) -> NDArray:
        """Load one array of a part.

        Parameters
        ----------
        index : int
            Which part.
        name : str
            One of `layout.DTYPES`.

        Returns
        -------
        number (n,) or (n, features)

        Raises
        ------
        StoreError
            It is not what was written.
        """
        with self._parts.open(index) as part:
            return part.read(name)

    def damaged_parts(self) -> list[str]:
        """Compute all checksums again; list the arrays that differ from what was written, or parts."""
        return self._parts.damaged()

    def _load(self, index: int, keep: NDArray[np.bool_], particles: bool) -> Events:
        """Load the chosen events of a part; without particles they have empty lists."""
        count = int(keep.sum())
        label = np.full(count, self.parts[index]["label"], np.int64)
        part_index = np.full(count, index, np.int64)
        with self._parts.open(index) as part:
            entry, high_level = part.read("entry")[keep], part.read("high_level")[keep]
            if particles:
                counts = np.diff(part.read("offsets"))
                offsets = np.concatenate(([0], np.cumsum(counts[keep])))
                rows = slice(None) if keep.all() else np.repeat(keep, counts)
                columns = {name: part.read(name)[rows] for name in self.particle_dtypes}
            else:
                offsets = np.zeros(count + 1, np.int64)
                columns = {name: np.empty(0, dtype) for name, dtype in self.particle_dtypes.items()}
        return Events(offsets, columns, high_level, label, part_index, entry)

    def _members(self, sample: Sample | None) -> list[NDArray[np.bool_]]:
        """Mark the events of a sample in each part."""
        if sample not in self._marked:
            self._marked[sample] = self._mark(sample)
        return self._marked[sample]

    def _mark(self, sample: Sample | None) -> list[NDArray[np.bool_]]:
        if sample is None:
            return [np.ones(part["events"], bool) for part in self.parts]
        keep, order = [], []
        for index, part in enumerate(self.parts):
            with self._parts.open(index) as stored:
                group, entry = stored.read("group"), stored.read("entry")
            test = is_test(self.split, part["dataset"], part["origin"], group)
            keep.append(test if sample == "test" else ~test)
            order.append(event_hash(self.split.seed, "balance", part["dataset"], part["origin"], entry))
        if sample == "test":
            return keep
        if self.split.balance:
            members = np.concatenate(keep)
            labels = np.repeat(
                [part["label"] for part in self.parts], [part["events"] for part in self.parts]
            )
            members[members] = balanced(labels[members], np.concatenate(order)[members])
            keep = np.split(members, np.cumsum([part["events"] for part in self.parts])[:-1])
        if sample == "train":
            return keep
        if self.fold:
            number, count = self.fold
            inside = self.folds(count) == number
            ends = np.cumsum([mask.sum() for mask in keep])[:-1]
            for mask, chosen in zip(keep, np.split(inside, ends), strict=True):
                mask[mask] = chosen if sample == "validation" else ~chosen
            return keep
        watched = [
            is_validation(self.split, part["dataset"], part["origin"], self.column(index, "group"))
            for index, part in enumerate(self.parts)
        ]
        return [
            mask & (aside if sample == "validation" else ~aside)
            for mask, aside in zip(keep, watched, strict=True)
        ]

    def _strings(self, key: str, part: NDArray[np.int64]) -> ak.Array:
        words = ak.Array([entry[key] for entry in self.parts] or [""])
        index = ak.index.Index64(part)
        return ak.Array(
            ak.contents.IndexedArray(index, words.layout, parameters={"__array__": "categorical"})
        )

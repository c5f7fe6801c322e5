"""Cross-validate the classifiers of the published study and write docs/results.md.

Run it in the folder of the events, after `hepdask run configs/paper.yaml` has simulated them:

    python reproduction/paper.py configs/paper.yaml --seeds 3 --published FOLDER
"""

from __future__ import annotations

import argparse
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import bootstrap
import comparison
import figures
import page
import published
import sample
from bootstrap import Measured
from folds import Scored, cross_validate
from study_results import DIFFERENCES, ROWS, Results, Rounded, Sequences

from hepdask import open_store, prepare
from hepdask.config import Config, load_config
from hepdask.models import NETWORKS
from hepdask.report import style
from hepdask.store import Store

logger = logging.getLogger("hepdask.reproduction")

#: Where the page goes.
OUT = Path("docs/results.md")

#: Bits of the fraction that a rounded store keeps.
_BITS = 10

#: Ranges of energies for the published networks, in units of those of the events here.
_WIDER = (1, 2, 3, 4, 6, 8)


class Study:
    """The events of a configuration, all of them in folds.

    Parameters
    ----------
    path : Path
        The configuration.
    folds, processes : int
        Folds, and how many are trained at once.
    """

    def __init__(self, path: Path, folds: int, processes: int) -> None:
        self.path, self.folds, self.processes = path, folds, processes
        self.folder = load_config(path).folder / "folds"

    def config(self, convention: str = "corrected", seed: int = 1, **changes: Any) -> Config:
        """Give the configuration with every event in the folds, and no event kept for anything else."""
        return load_config(
            self.path,
            {
                "split.test_fraction": 0.0, "analysis.convention": convention, "training.seed": seed,
                "training.early_stopping": None, "store.path": str(self.folder / f"{convention}.zarr"), **changes,
            },
        )  # fmt: skip

    def run(self, model: str, seeds: int, convention: str = "corrected", **changes: Any) -> list[Scored]:
        """Cross-validate a model with several seeds."""
        configs = [self.config(convention, seed, **changes) for seed in range(1, seeds + 1)]
        return cross_validate(configs, model, self.folds, self.folder / "scores", self.processes)


def main() -> None:
    """Do everything, and write the page and its figures."""
    arguments = _arguments()
    begin = time.monotonic()
    study = Study(arguments.config, arguments.folds, arguments.processes)
    stores = {}
    for convention in ("corrected", "reference"):
        prepare(study.config(convention))
        stores[convention] = open_store(study.config(convention).store_path)
    store = stores["corrected"]
    events = store.events("train", particles=False)
    parents, fold_of = sample.parents_of(store, events), store.folds(arguments.folds)
    _require_whole_parents(parents, fold_of)
    weights = bootstrap.draw(parents, events.label)

    scored = {name: study.run(model, arguments.seeds, **changes) for name, (model, changes) in ROWS.items()}
    measured = {
        name: bootstrap.measure([one.scores for one in runs], events.label, fold_of, weights)
        for name, runs in scored.items()
    }
    results = Results(
        command=f"python reproduction/paper.py configs/paper.yaml --folds {arguments.folds} --seeds {arguments.seeds}"
        + (" --published FOLDER" if arguments.published else "")
        + (f" --out {arguments.out}" if arguments.out != OUT else ""),
        name=arguments.out.stem,
        config=study.config(),
        store=store,
        folds=arguments.folds,
        classes=sample.describe(study.config(), store),
        events=len(events),
        parents={
            name: (len(set(parents[mine].tolist())), bootstrap.effective_events(parents[mine]))
            for label, name in enumerate(store.classes)
            for mine in [events.label == label]
        },
        measured=measured,
        cpu_s={name: sum(one.cpu_s for one in runs) / len(runs) for name, runs in scored.items()},
        sequences=_sequences(study, stores, scored["inclusive, GRU"], arguments.seeds),
        rounded=_rounded(study, store, arguments.seeds, fold_of, weights),
        networks=_networks(arguments.published, stores["reference"]),
        histories={
            name: [history for run in runs for history in run.histories]
            for name, runs in scored.items()
            if ROWS[name][0] in NETWORKS
        },
        wall_s=time.monotonic() - begin,
    )
    docs = arguments.out.parent
    with style.applied():
        names, classes = store.features["hlf"], store.classes
        figures.write(
            figures.features(events.high_level, events.label, names, classes),
            docs / f"{results.name}-features.png",
        )
        figures.write(figures.losses(results.histories), docs / f"{results.name}-losses.png")
    arguments.out.write_text(page.write(results, published.NUMBERS, sample.PUBLISHED, DIFFERENCES))
    logger.info(f"{arguments.out}: written")


def _sequences(study: Study, stores: Mapping[str, Store], jagged: list[Scored], seeds: int) -> Sequences:
    """Train the inclusive network on published sequences, and compare on the events that both conventions select."""
    rows = study.run("inclusive", seeds, "reference")
    both = comparison.common(stores["corrected"], stores["reference"])
    events = stores["corrected"].events("train", particles=False)
    labels = events.label[both.first]
    weights = bootstrap.draw(sample.parents_of(stores["corrected"], events)[both.first], labels)
    folds = {name: store.folds(study.folds) for name, store in stores.items()}

    def measured(runs: list[Scored], of: str, places: Any) -> Measured:
        return bootstrap.measure([one.scores[places] for one in runs], labels, folds[of][places], weights)

    return Sequences(
        len(labels),
        measured(jagged, "corrected", both.first),
        measured(rows, "reference", both.second),
        sum(one.cpu_s for one in jagged) / seeds,
        sum(one.cpu_s for one in rows) / seeds,
    )


def _rounded(study: Study, store: Store, seeds: int, folds: Any, weights: Any) -> Rounded:
    """Train and test the inclusive network on the same events with rounded particles."""
    changes: dict[str, Any] = {"store.mantissa_bits": _BITS, "store.path": str(study.folder / "rounded.zarr")}
    prepare(study.config(**changes))
    rounded = open_store(study.config(**changes).store_path)
    labels = rounded.labels("train")
    if (labels != store.labels("train")).any():
        raise SystemExit("the rounded store does not hold the same events")
    scores = [one.scores for one in study.run("inclusive", seeds, **changes)]
    return Rounded(
        _BITS,
        bootstrap.measure(scores, labels, folds, weights),
        *map(sample.bytes_an_event, (rounded, store)),
    )


def _networks(folder: Path | None, store: Store) -> dict[tuple[str, int], Measured]:
    """Score the published networks, which have seen none of these events, with ranges of features of several widths."""
    if folder is None:
        return {}
    events = store.events("train", particles=False)
    weights = bootstrap.draw(sample.parents_of(store, events), events.label)
    one_fold = events.label * 0
    found = {}
    for file in sorted([*folder.glob("*.keras"), *folder.glob("*.h5")]):
        for wider in _WIDER:
            scores = published.scores(file, store, wider)
            found[file.name, wider] = bootstrap.measure([scores], events.label, one_fold, weights)
            logger.info(f"{file.name}: scored, ranges x {wider}")
    return found


def _require_whole_parents(parents: Any, folds: Any) -> None:
    """Refuse to go on where a parent's events were divided between folds."""
    pairs = {(parent, fold) for parent, fold in zip(parents.tolist(), folds.tolist(), strict=True)}
    if len(pairs) != len(set(parents.tolist())):
        raise SystemExit("events of one parent are in several folds: their scores would be too good")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", type=Path, help="the configuration")
    parser.add_argument("--folds", type=int, default=5, help="folds of the cross-validation")
    parser.add_argument("--seeds", type=int, default=3, help="trainings of every fold")
    parser.add_argument("--processes", type=int, default=1, help="folds trained at once")
    parser.add_argument(
        "--published", type=Path, help="folder with the published networks (.keras, .h5), if there"
    )
    parser.add_argument("--out", type=Path, default=OUT, help="the page; figures go beside it")
    return parser.parse_args()


if __name__ == "__main__":
    main()

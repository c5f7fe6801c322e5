"""Which settings to try next, and what came of those tried: an Optuna study in a journal on disk.

Every line of the journal is written when it happens, so that a killed driver loses no setting that was finished; those
that were under way are tried again.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hepdask.config import Range, Tuning
from hepdask.errors import MissingDependency
from hepdask.files.lock import locked
from hepdask.tuning import search_space

#: Settings that must be finished before others are compared with their median.
_BEFORE_PRUNING = 5


@dataclass(frozen=True)
class Trial:
    """One setting.

    Attributes
    ----------
    number : int
        From 0, in the order of trying.
    parameters : dict
        Keys of the model's section and their values.
    state : {"complete", "pruned", "failed", "running"}
        What came of it.
    value, error : float or None
        Mean of the metric over the folds that were tried, and the error of that mean.
    folds : list of float
        The metric of each fold that was tried.
    reason : str or None
        Why it failed.
    cpu_s : float
        CPU time [s].
    """

    number: int
    parameters: dict[str, Any]
    state: str
    value: float | None
    error: float | None
    folds: list[float]
    reason: str | None
    cpu_s: float


class Study:
    """Made by `open_study`."""

    def __init__(self, study: Any, tuning: Tuning) -> None:
        import optuna

        self._optuna, self._study, self._tuning = optuna, study, tuning
        self._running: dict[int, Any] = {}
        self._distributions = {
            key: _distribution(optuna, values) for key, values in tuning.parameters.items()
        }
        states = optuna.trial.TrialState
        for trial in study.get_trials(states=(states.RUNNING,)):  # their driver is gone: they are tried again
            study.tell(trial.number, state=states.FAIL)
            study.enqueue_trial(trial.params)
        self.total = tuning.trials
        if tuning.sampler == "grid":
            known = {
                json.dumps(trial.system_attrs.get("fixed_params", trial.params), sort_keys=True)
                for trial in study.get_trials(deepcopy=False)
            }
            combinations = [
                self._encoded(combination) for combination in search_space.grid(tuning.parameters)
            ]
            self.total = len(combinations)
            for combination in combinations:
                if json.dumps(combination, sort_keys=True) not in known:
                    study.enqueue_trial(combination)

    def ask(self) -> tuple[int, dict[str, Any]] | None:
        """Give the number and the parameters of a setting to try; None where enough have been."""
        if len(self.trials()) >= self.total:
            return None
        trial = self._study.ask(self._distributions)
        self._running[trial.number] = trial
        return trial.number, _decoded(trial.params)

    def promising(self, number: int, folds: Sequence[float]) -> bool:
        """Say whether the folds tried so far are no worse than the median of the settings before."""
        trial = self._running[number]
        trial.report(float(np.mean(folds)), len(folds))
        return not trial.should_prune()

    def finish(self, number: int, folds: Sequence[float], cpu_s: float, pruned: bool = False) -> None:
        """Record what the folds gave; a setting of which some value is not finite has failed."""
        if not np.isfinite(folds).all():
            self.fail(number, f"the {self._tuning.metric} of a fold is not a finite number", cpu_s)
            return
        trial = self._running.pop(number)
        trial.set_user_attr("folds", [float(value) for value in folds])
        trial.set_user_attr("cpu_s", cpu_s)
        states = self._optuna.trial.TrialState
        self._study.tell(
            trial, float(np.mean(folds)) if not pruned else None, states.PRUNED if pruned else states.COMPLETE
        )

    def fail(self, number: int, reason: str, cpu_s: float = 0.0) -> None:
        """Record why a setting could not be tried."""
        trial = self._running.pop(number)
        trial.set_user_attr("reason", reason)
        trial.set_user_attr("cpu_s", cpu_s)
        self._study.tell(trial, state=self._optuna.trial.TrialState.FAIL)

    def trials(self) -> list[Trial]:
        """Give all settings that were tried, or are being."""
        names = {"COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "failed", "RUNNING": "running"}
        found = []
        for trial in self._study.get_trials(deepcopy=False):
            interrupted = trial.state.name == "FAIL" and "reason" not in trial.user_attrs
            if trial.state.name not in names or interrupted:
                continue
            folds = trial.user_attrs.get("folds", [])
            found.append(
                Trial(
                    trial.number,
                    _decoded(trial.params),
                    names[trial.state.name],
                    float(np.mean(folds)) if folds else None,
                    float(np.std(folds, ddof=1) / np.sqrt(len(folds))) if len(folds) > 1 else None,
                    folds,
                    trial.user_attrs.get("reason"),
                    trial.user_attrs.get("cpu_s", 0.0),
                )
            )
        return found

    def ranked(self) -> list[Trial]:
        """Give the complete ones, the best first."""
        sign = 1 if self._tuning.metric == "loss" else -1
        complete = [trial for trial in self.trials() if trial.state == "complete" and trial.value is not None]
        return sorted(complete, key=lambda trial: (sign * (trial.value or 0.0), trial.number))

    def importances(self) -> dict[str, float]:
        """Say how much of the metric's variance each parameter explains (fANOVA); empty where too few are complete.

        A choice from a list counts by its place there. Optuna would make a dimension of each choice, and its time grows
        with two to the power of their number.
        """
        ranked = self.ranked()
        if len(ranked) < 2 or len({trial.value for trial in ranked}) < 2:
            return {}
        optuna = self._optuna
        distributions, places = dict(self._distributions), {}
        for key, distribution in self._distributions.items():
            if isinstance(distribution, optuna.distributions.CategoricalDistribution):
                places[key] = {choice: place for place, choice in enumerate(distribution.choices)}
                distributions[key] = optuna.distributions.IntDistribution(0, len(places[key]) - 1)
        by_place = optuna.create_study()
        for trial in ranked:
            parameters = {
                key: places[key][value] if key in places else value
                for key, value in self._encoded(trial.parameters).items()
            }
            by_place.add_trial(
                optuna.trial.create_trial(params=parameters, distributions=distributions, value=trial.value)
            )
        evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
        found = optuna.importance.get_param_importances(by_place, evaluator=evaluator)
        return {key: float(share) for key, share in found.items()}

    def _encoded(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        return {
            key: json.dumps(value) if isinstance(self._tuning.parameters[key], list) else value
            for key, value in parameters.items()
        }


@contextmanager
def open_study(path: Path, name: str, tuning: Tuning, seed: int) -> Iterator[Study]:
    """Open a study, or begin it; no other driver can work on the same file meanwhile.

    Parameters
    ----------
    path : Path
        The journal; it may hold other studies, too.
    name : str
        Which of them.
    tuning : Tuning
        Section `tuning` of the configuration.
    seed : int
        Of the sampler.

    Raises
    ------
    MissingDependency
        Optuna is not installed.
    HepdaskError
        Another driver works on it.
    """
    try:
        import optuna
        from optuna.storages.journal import JournalFileBackend
    except ImportError:
        raise MissingDependency("Optuna is not installed: pip install 'hepdask[tune]'") from None
    with locked(path.parent, "working on this study"), path.open("a+b") as journal, _quiet(optuna):
        _repair(journal)
        path.with_name(path.name + ".lock").unlink(missing_ok=True)  # of a driver that was killed
        storage = optuna.storages.JournalStorage(JournalFileBackend(str(path)))
        study = optuna.create_study(
            storage=storage, study_name=name, load_if_exists=True,
            pruner=optuna.pruners.MedianPruner(_BEFORE_PRUNING, 0),
            direction="minimize" if tuning.metric == "loss" else "maximize",
        )  # fmt: skip
        seed += len(study.get_trials(deepcopy=False))  # one that goes on does not draw the same again
        study.sampler = _sampler(optuna, tuning, seed)
        yield Study(study, tuning)


@contextmanager
def _quiet(optuna: Any) -> Iterator[None]:
    """Let Optuna say nothing but errors for the block; afterwards it says what it said before."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)


def _sampler(optuna: Any, tuning: Tuning, seed: int) -> Any:
    if tuning.sampler != "tpe":
        return optuna.samplers.RandomSampler(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # of `constant_liar`
        return optuna.samplers.TPESampler(seed=seed, constant_liar=True)


def _repair(journal: Any) -> None:
    """Cut off a line that a killed driver had begun."""
    journal.seek(0)
    content = journal.read()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        journal.truncate(whole)


def _distribution(optuna: Any, values: list[Any] | Range) -> Any:
    kinds = optuna.distributions
    if not isinstance(values, Range):
        return kinds.CategoricalDistribution([json.dumps(value) for value in values])
    numbers = [values.low, values.high, values.step if values.step is not None else 1]
    if all(isinstance(number, int) for number in numbers):
        return kinds.IntDistribution(values.low, values.high, log=values.log, step=values.step or 1)
    return kinds.FloatDistribution(values.low, values.high, log=values.log, step=values.step)


def _decoded(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Give parameters as the configuration has them: choices are kept as JSON."""
    return {key: json.loads(value) if isinstance(value, str) else value for key, value in parameters.items()}

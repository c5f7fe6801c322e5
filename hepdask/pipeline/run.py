"""`run`: all steps in order, each skipped where it is up to date."""

from __future__ import annotations

from distributed import Client

from hepdask import clusters
from hepdask.config import Config
from hepdask.files import atomic
from hepdask.monitoring.performance_report import Recording
from hepdask.pipeline.evaluate import Evaluated, evaluate_recorded
from hepdask.pipeline.owned_output import owns_output
from hepdask.pipeline.prepare import prepare
from hepdask.pipeline.required_extras import require_for_run
from hepdask.pipeline.simulate import simulate_samples
from hepdask.pipeline.train import train


def run(config: Config, client: Client | None = None) -> Evaluated:
    """Simulate, prepare, train and evaluate.

    Parameters
    ----------
    config : Config
        All of it.
    client : distributed.Client, optional
        Where everything runs; by default on `config.cluster`, one for all steps.

    Returns
    -------
    Evaluated
        Paths of the report and the metrics.

    Raises
    ------
    HepdaskError
        What the steps raise.
    """
    require_for_run(config)
    return _steps(config, client)


@owns_output("running")
def _steps(config: Config, client: Client | None) -> Evaluated:
    with clusters.connect(config.cluster, client) as client:
        recording = Recording(client)
        made = [sample for sample in simulate_samples(config, client) if sample.fresh]
        if made:
            _record(config, "simulate", sum(s.wall_s for s in made), sum(s.cpu_s for s in made))
        prepared = prepare(config, client)
        if prepared.tasks:
            _record(config, "prepare", prepared.wall_s, prepared.cpu_s)
        for model in train(config, client=client):
            if model.fresh:
                facts = model.record.facts
                _record(config, f"train {model.name}", facts["wall_s"], facts["cpu_s"])
        return evaluate_recorded(config, client, recording)


def _record(config: Config, step: str, wall_s: float, cpu_s: float) -> None:
    """Keep what a step took, for the report."""
    path = config.folder / "steps.json"
    steps = atomic.read_json(path) or {}
    steps[step] = {"wall_s": wall_s, "cpu_s": cpu_s}
    atomic.write_json(path, steps)

"""One page that tells how good the models are, with its numbers and figures beside it as files."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from hepdask.evaluation.calibration import calibration
from hepdask.evaluation.metrics import TRUE_POSITIVE_RATES, classification_metrics
from hepdask.evaluation.overtraining import SUSPICIOUS, overtraining
from hepdask.files.atomic import write_bytes
from hepdask.report import number_format, style
from hepdask.report.gallery import Gallery
from hepdask.report.plots import series
from hepdask.report.results import ModelResult, RunFacts

__all__ = ["ModelResult", "Report", "RunFacts", "write_report"]


@dataclass(frozen=True)
class Report:
    """Where a report was written.

    Attributes
    ----------
    html : Path
        The page; it needs no other file.
    metrics : Path
        JSON: ``classes``, and under ``models`` the metrics of each model.
    figures : list of Path
        The figures as PDF.
    """

    html: Path
    metrics: Path
    figures: list[Path]


def write_report(folder: Path, run: RunFacts, models: Sequence[ModelResult]) -> Report:
    """Evaluate the models and write ``metrics.json``, ``report.html`` and ``figures/*.pdf``.

    Each file appears whole or not at all, and the page last, so that it never shows numbers that are not
    there. The same input gives the same bytes.

    Parameters
    ----------
    folder : Path
        Where to write; made where it is missing, files of an earlier report are replaced.
    run : RunFacts
        What the models have in common.
    models : sequence of ModelResult
        At least one; the page shows them in order of their mean AUC, the best first.

    Returns
    -------
    Report
        The paths.

    Raises
    ------
    ValueError
        If there is no model, two have one name, or labels and scores of one do not fit (see
        `classification_metrics`).
    OSError
        If the folder cannot be written.
    """
    folder = Path(folder)
    metrics = _measure(run, models)
    ordered = sorted(models, key=lambda model: _rank(metrics[model.name]))
    metrics = {model.name: metrics[model.name] for model in ordered}
    gallery = Gallery(folder / "figures", run, ordered, metrics)
    drawings = gallery.draw()
    page = _render(run, ordered, metrics, drawings)
    report = Report(folder / "report.html", folder / "metrics.json", gallery.files)
    numbers = json.dumps({"classes": run.classes, "models": metrics}, indent=2, allow_nan=False)
    write_bytes(report.metrics, (numbers + "\n").encode())
    write_bytes(report.html, page.encode())
    return report


def _measure(run: RunFacts, models: Sequence[ModelResult]) -> dict[str, dict[str, Any]]:
    """Return the metrics of each model, naming the model that cannot be measured."""
    if not models:
        raise ValueError("a report needs at least one model")
    metrics: dict[str, dict[str, Any]] = {}
    for model in models:
        if model.name in metrics:
            raise ValueError(f"two models are called {model.name!r}")
        try:
            found = classification_metrics(model.labels, model.scores, run.classes)
        except ValueError as error:
            raise ValueError(f"model {model.name!r}: {error}") from error
        metrics[model.name] = found | _more(run, model, probabilities=found["log_loss"] is not None)
    return metrics


def _more(run: RunFacts, model: ModelResult, probabilities: bool) -> dict[str, Any]:
    """Return what is said of a model beyond its metrics on the test events; None where it cannot be known."""
    trained = len(model.train_labels) > 0
    return {
        "calibration_error": {
            name: calibration(model.labels == k, model.scores[:, k]).expected_error
            for k, name in enumerate(run.classes)
        }
        if probabilities
        else None,
        "overtraining": overtraining(
            model.labels, model.scores, model.train_labels, model.train_scores, run.classes
        )
        if trained
        else None,
        "importances": model.importances or None,
    }


def _rank(metrics: Mapping[str, Any]) -> tuple[float, float]:
    """Return the sorting key: mean AUC first, accuracy where it is equal or not defined."""
    area = metrics["mean_auc"]
    return (-area if area is not None else 0.0, -metrics["accuracy"])


def _render(
    run: RunFacts,
    models: Sequence[ModelResult],
    metrics: Mapping[str, dict[str, Any]],
    drawings: Mapping[str, Any],
) -> str:
    """Fill the template."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for name in ("count", "percent", "decimal", "with_error", "factor", "seconds", "fact", "heading"):
        environment.filters[name] = getattr(number_format, name)
    facts = {model.name: _facts(model) for model in models}
    return environment.get_template("template.html.jinja").render(
        run=run,
        models=models,
        metrics=metrics,
        drawings=drawings,
        best=models[0].name,
        reasons=_reasons(metrics),
        rates=TRUE_POSITIVE_RATES,
        suspicious=SUSPICIOUS,
        facts=facts,
        fact_names=list(dict.fromkeys(key for of_model in facts.values() for key in of_model)),
        selection=_selection(run),
        steps=_steps(run),
        colours=list(zip(style.PALETTE, style.DARK_PALETTE, strict=True)),
        swatch={name: k % len(style.PALETTE) for k, name in enumerate(run.classes)},
        no_epochs=[model.name for model in models if not model.history],
    )


def _reasons(metrics: Mapping[str, dict[str, Any]]) -> list[str]:
    """Return why numbers are missing, each reason once."""
    found = [
        entry["reason"]
        for of_model in metrics.values()
        for entry in of_model["classes"].values()
        if entry["reason"]
    ]
    losses = [
        f"{name}: {entry['log_loss_reason']}" for name, entry in metrics.items() if entry["log_loss_reason"]
    ]
    return list(dict.fromkeys(found + losses))


def _facts(model: ModelResult) -> dict[str, Any]:
    """Return the facts of a model with what its history adds."""
    facts = dict(model.facts)
    if model.history:
        facts.setdefault("epochs", len(model.history))
    _, rates = series(model.history, "events_per_second")
    if len(rates):
        facts.setdefault("events_per_second", float(np.median(rates)))
    return facts


def _selection(run: RunFacts) -> list[dict[str, Any]]:
    """Return the rows of the selection table with efficiencies and, of several, the sum."""
    keys = ("files", "events_read", "events_selected", "events_lost")
    rows = [{**row, "label": _class_name(row.get("label"), run.classes)} for row in run.selection]
    if len(rows) > 1:
        rows.append({"dataset": "all", "label": "", **{key: sum(row[key] for row in rows) for key in keys}})
    for row in rows:
        row["efficiency"] = row["events_selected"] / row["events_read"] if row["events_read"] else None
    return rows


def _class_name(label: Any, classes: Sequence[str]) -> str:
    """Return the class that a label stands for, whether given as an index or as a name."""
    if isinstance(label, int | np.integer) and 0 <= label < len(classes):
        return classes[int(label)]
    return "" if label is None else str(label)


def _steps(run: RunFacts) -> list[dict[str, Any]]:
    """Return the rows of the time table and, of several, the sum."""
    rows = [
        {"step": row["step"], "wall_s": row.get("wall_s"), "cpu_s": row.get("cpu_s")} for row in run.steps
    ]
    if len(rows) > 1:
        sums = {key: sum(row[key] or 0.0 for row in rows) for key in ("wall_s", "cpu_s")}
        rows.append({"step": "all", **sums})
    return rows

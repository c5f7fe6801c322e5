"""What a search found, for the eye: importance of the parameters, parallel coordinates, and a page with both."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib.figure import Figure

from hepdask.config import Range
from hepdask.files.atomic import write_bytes
from hepdask.report import inline_svg, style
from hepdask.tuning.study import Trial


def write_page(
    folder: Path,
    title: str,
    metric: str,
    space: Mapping[str, list[Any] | Range],
    trials: Sequence[Trial],
    ranked: Sequence[Trial],
    importances: Mapping[str, float],
) -> None:
    """Write ``study.html``, which needs no other file, ``importance.pdf`` and ``parallel.pdf``.

    Parameters
    ----------
    folder : Path
        Where to write.
    title : str
        Heading of the page.
    metric : str
        What was measured.
    space : mapping
        What each parameter may be.
    trials, ranked : sequence of Trial
        All of them; and the complete ones, the best first.
    importances : mapping
        Share of the metric's variance that each parameter explains; may be empty.
    """
    with style.applied():
        figures = {"parallel": _parallel(space, ranked, metric)}
        if importances:
            figures = {"importance": _importance(importances, metric)} | figures
        drawings = {}
        for name, figure in figures.items():
            drawings[name] = inline_svg.inline(figure, name, _described(name, metric, ranked, importances))
            buffer = io.BytesIO()
            figure.savefig(buffer, format="pdf", metadata={"CreationDate": None})
            write_bytes(folder / f"{name}.pdf", buffer.getvalue())
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    environment.filters["short"] = lambda value: f"{value:.4g}" if isinstance(value, float) else value
    page = environment.get_template("page.html.jinja").render(
        title=title, metric=metric, parameters=list(space), trials=trials, ranked=ranked, drawings=drawings,
        colours={"ink": style.INK, "muted": style.MUTED, "grid": style.GRID, "c0": style.PALETTE[0]},
    )  # fmt: skip
    write_bytes(folder / "study.html", page.encode())


def _importance(importances: Mapping[str, float], metric: str) -> Figure:
    figure = Figure(figsize=(5.4, 0.8 + 0.4 * len(importances)))
    axes = figure.subplots()
    names = list(importances)[::-1]
    axes.barh(names, [importances[name] for name in names], color=style.PALETTE[0], height=0.6)
    axes.set_xlabel(f"fraction of the variance of the {metric} (fANOVA)")
    axes.set_xlim(0, 1)
    axes.tick_params(axis="y", which="both", length=0)
    return figure


def _parallel(space: Mapping[str, list[Any] | Range], ranked: Sequence[Trial], metric: str) -> Figure:
    """Draw a line a setting over one axis a parameter; the better, the darker, and the best on top."""
    figure = Figure(figsize=(1.9 * (len(space) + 1) + 0.6, 4.0))
    axes = figure.subplots()
    values = np.array([trial.value for trial in ranked])
    places = [_places(space[name], [trial.parameters[name] for trial in ranked]) for name in space]
    places.append(_scaled(values))
    for place in range(len(ranked) - 1, -1, -1):
        shade = 0.7 - 0.6 * place / max(1, len(ranked) - 1)
        width, alpha = (2.8, 1.0) if place == 0 else (1.1, shade)
        heights = [column[place] for column in places]
        axes.plot(heights, color=style.PALETTE[0], linewidth=width, alpha=alpha)
    for at, name in enumerate(space):
        for height, label in _ticks(space[name]):
            axes.annotate(label, (at, height), (3, 0), textcoords="offset points", fontsize=8, va="center")
    for height, value in ((0.0, values.min()), (1.0, values.max())):
        axes.annotate(
            f"{value:.4g}", (len(space), height), (3, 0), textcoords="offset points", fontsize=8, va="center"
        )
    for at in range(len(space) + 1):
        axes.axvline(at, color=style.MUTED, linewidth=0.8)
    axes.set_xticks(range(len(space) + 1), [*space, metric])
    axes.set_xlim(-0.1, len(space) + 0.5)
    axes.set_yticks([])
    axes.minorticks_off()
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.tick_params(axis="x", which="both", length=0)
    return figure


def _places(choices: list[Any] | Range, values: Sequence[Any]) -> list[float]:
    """Where values stand on an axis from 0 to 1."""
    if isinstance(choices, Range):
        ends = np.array([choices.low, choices.high], float)
        change = np.log if choices.log else np.asarray
        low, high = change(ends)
        return [float((change(value) - low) / (high - low)) for value in values]
    known = [json.dumps(choice) for choice in choices]
    return [(known.index(json.dumps(value)) + 0.5) / len(known) for value in values]


def _ticks(choices: list[Any] | Range) -> list[tuple[float, str]]:
    if isinstance(choices, Range):
        return [(0.0, f"{choices.low:g}"), (1.0, f"{choices.high:g}")]
    return [(place, str(choice)) for place, choice in zip(_places(choices, choices), choices, strict=True)]


def _scaled(values: np.ndarray) -> list[float]:
    width = values.max() - values.min()
    return list((values - values.min()) / width) if width else [0.5] * len(values)


def _described(name: str, metric: str, ranked: Sequence[Trial], importances: Mapping[str, float]) -> str:
    if name == "importance":
        shares = ", ".join(f"{parameter} {share:.2f}" for parameter, share in importances.items())
        return f"Fraction of the variance of the {metric} that each parameter explains: {shares}."
    best = ", ".join(f"{parameter} {value}" for parameter, value in ranked[0].parameters.items())
    return f"{len(ranked)} settings as lines over one axis per parameter and one for the {metric}; the best: {best}."

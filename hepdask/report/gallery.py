"""All figures of a report: which there are, their captions, and their files."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup
from matplotlib.backends.backend_pdf import PdfPages
from matplotlib.figure import Figure

from hepdask.evaluation.calibration import calibration
from hepdask.evaluation.metrics import roc
from hepdask.files.atomic import write_bytes
from hepdask.report import alt_text, inline_svg, plots, style
from hepdask.report.results import ModelResult, RunFacts


@dataclass(frozen=True)
class Drawing:
    """A figure of the page: its panels as SVG under one caption, and the PDF files that hold the same."""

    caption: str
    panels: list[Markup]
    files: list[str]


class Gallery:
    """Draws the figures of a report and keeps their files.

    Parameters
    ----------
    folder : Path
        Where the PDF files go.
    run : RunFacts
        What the models have in common.
    models : sequence of ModelResult
        The models in the order of the report.
    metrics : mapping of dict
        `classification_metrics` of each model.
    """

    def __init__(
        self,
        folder: Path,
        run: RunFacts,
        models: Sequence[ModelResult],
        metrics: Mapping[str, dict[str, Any]],
    ) -> None:
        self.folder, self.run, self.models, self.metrics = folder, run, models, metrics
        self.names = [model.name for model in models]
        self.colours = style.class_colours(run.classes)
        self.slugs = {
            group: _slugs(of)
            for group, of in (("model", self.names), ("class", run.classes), ("feature", list(run.features)))
        }
        self.curves = self._curves()
        self.files: list[Path] = []

    def draw(self) -> dict[str, list[Drawing]]:
        """Draw everything in the report's style; return the drawings by section."""
        with style.applied():
            return {
                "roc": self._roc(),
                "confusion": self._confusion(),
                "training": [drawing for model in self.models if (drawing := self._training(model)).panels],
                "scores": [self._scores(model) for model in self.models],
                "calibration": [
                    drawing for model in self.models if (drawing := self._calibration(model)).panels
                ],
                "importance": [self._importance(model) for model in self.models if model.importances],
                "features": self._features(),
                "inputs": self._inputs(),
            }

    def _curves(self) -> dict[str, dict[str, plots.RocCurve]]:
        """Return the ROC curves by class and model, for the classes that have any."""
        curves: dict[str, dict[str, plots.RocCurve]] = {}
        for k, name in enumerate(self.run.classes):
            for model in self.models:
                entry = self.metrics[model.name]["classes"][name]
                if entry["auc"] is not None:
                    curve = plots.RocCurve(
                        *roc(model.labels, model.scores, k), entry["auc"], entry["auc_error"]
                    )
                    curves.setdefault(name, {})[model.name] = curve
        return curves

    def _roc(self) -> list[Drawing]:
        """Draw the ROC curves on both scales."""
        if not self.curves:
            return []
        linear = [
            inline_svg.inline(
                plots.roc({name: by_model}, self.colours, self.names),
                f"roc-{self.slugs['class'][name]}",
                alt_text.roc(name, by_model),
            )
            for name, by_model in self.curves.items()
        ]
        logarithmic = [
            inline_svg.inline(
                plots.roc_log({name: by_model}, self.colours, self.names),
                f"roc-log-{self.slugs['class'][name]}",
                alt_text.roc_log(name, {model: self.metrics[model] for model in by_model}),
            )
            for name, by_model in self.curves.items()
        ]
        whole = plots.roc(self.curves, self.colours, self.names)
        whole_log = plots.roc_log(self.curves, self.colours, self.names)
        return [
            Drawing(
                "True-positive rate against false-positive rate of each class against the rest, with the "
                "area under the curve: the curve of ttbar is the top selector, that of wjets the W selector. The "
                "dotted line is a classifier that guesses at random."
                if {"ttbar", "wjets"} <= set(self.run.classes)
                else "True-positive rate against false-positive rate of each class against the rest, with the "
                "area under the curve. The dotted line is a classifier that guesses at random.",
                linear,
                [self._pdf(whole, "roc")],
            ),
            Drawing(
                "The same curves from a trigger's point of view: how much of the rest passes when a given "
                "fraction of the class is kept. The markers are at true-positive rates of 90, 95 and 99 %.",
                logarithmic,
                [self._pdf(whole_log, "roc_log")],
            ),
        ]

    def _confusion(self) -> list[Drawing]:
        """Draw the confusion matrix of each model."""
        drawings = []
        for model in self.models:
            matrix = self.metrics[model.name]["confusion_matrix"]
            figure = plots.confusion(matrix, self.run.classes)
            label = alt_text.confusion(model.name, matrix, self.run.classes)
            name = f"confusion_{self.slugs['model'][model.name]}"
            drawings.append(
                Drawing(model.name, [inline_svg.inline(figure, name, label)], [self._pdf(figure, name)])
            )
        return drawings

    def _training(self, model: ModelResult) -> Drawing:
        """Draw loss and accuracy by epoch, without panels where a model has no history."""
        panels, files = [], []
        for quantity in ("loss", "accuracy"):
            if not any(len(plots.series(model.history, key)[1]) for key in (quantity, f"val_{quantity}")):
                continue
            figure = plots.learning_curve(model.history, quantity)
            name = f"{quantity}_{self.slugs['model'][model.name]}"
            panels.append(
                inline_svg.inline(figure, name, alt_text.learning_curve(model.name, model.history, quantity))
            )
            files.append(self._pdf(figure, name))
        return Drawing(model.name, panels, files)

    def _scores(self, model: ModelResult) -> Drawing:
        """Draw the score distributions of a model, a panel for each class's score."""
        classes = self.run.classes
        panels = [
            inline_svg.inline(
                plots.scores(
                    model.labels, model.scores, classes, [name], model.train_labels, model.train_scores
                ),
                f"scores-{self.slugs['model'][model.name]}-{self.slugs['class'][name]}",
                alt_text.scores(model.name, name, model.labels, model.scores[:, k], classes),
            )
            for k, name in enumerate(classes)
        ]
        whole = plots.scores(
            model.labels, model.scores, classes, classes, model.train_labels, model.train_scores
        )
        return Drawing(model.name, panels, [self._pdf(whole, f"scores_{self.slugs['model'][model.name]}")])

    def _calibration(self, model: ModelResult) -> Drawing:
        """Draw the reliability of a model's scores, without panels where they are no probabilities."""
        if self.metrics[model.name]["log_loss"] is None:
            return Drawing(model.name, [], [])
        curves = {
            name: calibration(model.labels == k, model.scores[:, k])
            for k, name in enumerate(self.run.classes)
        }
        name = f"calibration_{self.slugs['model'][model.name]}"
        figure = plots.calibration(curves, self.run.classes)
        label = alt_text.calibration(model.name, curves)
        return Drawing(model.name, [inline_svg.inline(figure, name, label)], [self._pdf(figure, name)])

    def _importance(self, model: ModelResult) -> Drawing:
        """Draw what each feature is worth to a model."""
        name = f"importance_{self.slugs['model'][model.name]}"
        figure = plots.importances(model.importances)
        label = alt_text.importances(model.name, model.importances)
        return Drawing(model.name, [inline_svg.inline(figure, name, label)], [self._pdf(figure, name)])

    def _features(self) -> list[Drawing]:
        """Draw every high-level feature by class under one caption."""
        panels, files = [], []
        for feature, values in self.run.features.items():
            figure = plots.feature(feature, values, self.run.classes)
            name = f"feature_{self.slugs['feature'][feature]}"
            panels.append(inline_svg.inline(figure, name, alt_text.feature(feature, values)))
            files.append(self._pdf(figure, name))
        caption = "Each class is scaled to unit area; the first and last bins include underflow and overflow."
        return [Drawing(caption, panels, files)] if panels else []

    def _inputs(self) -> list[Drawing]:
        """Draw the histograms that were filled while preparing: those of events, then those of particles."""
        documents = self.run.histograms
        names = list(next(iter(documents.values()), {}))
        drawings = []
        for kind, title in (("hlf", "High-level features"), ("particles", "Particles")):
            figures: list[Figure] = []
            panels: list[Markup] = []
            for feature in [name for name in names if name.startswith(f"{kind}.")]:
                by_class = {name: document[feature] for name, document in documents.items()}
                figures.append(plots.histogram(feature, by_class, self.run.classes))
                slug = f"inputs-{kind}-{len(panels)}"
                panels.append(inline_svg.inline(figures[-1], slug, alt_text.histogram(feature, by_class)))
            if panels:
                drawings.append(Drawing(title, panels, [self._pages(figures, f"inputs_{kind}")]))
        return drawings

    def _pages(self, figures: Sequence[Figure], name: str) -> str:
        """Write figures as the pages of one PDF; return its path from the report."""
        buffer = io.BytesIO()
        with PdfPages(buffer, metadata={"CreationDate": None}) as pages:
            for figure in figures:
                pages.savefig(figure)
        return self._keep(buffer, name)

    def _pdf(self, figure: Figure, name: str) -> str:
        """Write a figure as PDF, the same bytes for the same data; return its path from the report."""
        buffer = io.BytesIO()
        figure.savefig(buffer, format="pdf", metadata={"CreationDate": None})
        return self._keep(buffer, name)

    def _keep(self, buffer: io.BytesIO, name: str) -> str:
        path = self.folder / f"{name}.pdf"
        write_bytes(path, buffer.getvalue())
        self.files.append(path)
        return f"{self.folder.name}/{path.name}"


def _slugs(names: Sequence[str]) -> dict[str, str]:
    """Turn names into different ones that suit files and ids."""
    slugs: dict[str, str] = {}
    for name in names:
        plain = re.sub(r"\W+", "-", name, flags=re.ASCII).strip("-").lower() or "unnamed"
        unique, number = plain, 1
        while unique in slugs.values():
            number += 1
            unique = f"{plain}-{number}"
        slugs[name] = unique
    return slugs

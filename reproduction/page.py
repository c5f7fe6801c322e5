"""The page docs/results.md: the numbers of a run beside the published ones, and what they do and do not show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import jinja2
import numpy as np
from bootstrap import REPLICAS, Measured
from numpy.typing import NDArray
from study_results import Results

#: A difference below this many errors is not called one.
RESOLVED = 3

#: A training whose last loss is above so many times the median went wrong.
FAR = 1.2

_NAMES = {"qcd": "QCD", "ttbar": "tt̄", "wjets": "W + jets"}
_QUANTITIES = ("accuracy", "AUC QCD", "AUC tt̄", "AUC W")


def write(
    results: Results,
    numbers: Mapping[str, Sequence[str]],
    selection: Mapping[str, tuple[int, int, int]],
    differences: Sequence[tuple[str, str]],
) -> str:
    """Write the page.

    Parameters
    ----------
    results : Results
        Of the run.
    numbers : mapping of sequence of str
        Published accuracy and AUCs of each row.
    selection : mapping of (int, int, int)
        Published events of each class: raw, with a lepton, selected.
    differences : sequence of (str, str)
        Which rows are compared.
    """
    analysis = results.config.analysis
    compared = [
        (first, second, results.measured[second] - results.measured[first]) for first, second in differences
    ]
    sequences = results.sequences
    jagged_gain = sequences.jagged - sequences.published
    ratio = sequences.jagged_cpu_s / sequences.published_cpu_s
    template = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True).from_string(
        (Path(__file__).parent / "results.md.jinja").read_text()
    )
    return template.render(
        command=results.command,
        name=results.name,
        made=f"{sum(one.made for one in results.classes.values()):,}",
        planned=f"{sum(one.events for one in results.config.simulation.values()):,}",
        names=[_NAMES[name] for name in results.classes],
        sample=list(_sample(results, selection)),
        caps=(analysis.max_tracks, analysis.max_photons, analysis.max_neutrals),
        particles=_particles(results),
        folds=results.folds,
        seeds=len(results.measured["HLF"].values),
        replicas=REPLICAS,
        classifiers=[
            (name, _values(one), f"{results.cpu_s[name]:,.0f}", [text or "–" for text in numbers[name]])
            for name, one in results.measured.items()
        ],
        resolved=RESOLVED,
        differences=[(first, second, _changes(change)) for first, second, change in compared],
        stragglers=stragglers(results.histories),
        verdicts=[verdict(first, second, change) for first, second, change in compared],
        order=order(results.measured),
        common=f"{sequences.events:,}",
        sequences=[
            ("jagged", _values(sequences.jagged), f"{sequences.jagged_cpu_s:,.0f}"),
            ("published form", _values(sequences.published), f"{sequences.published_cpu_s:,.0f}"),
            ("jagged less published", _changes(jagged_gain), f"× {ratio:.2f}"),
        ],
        sequences_verdict=verdict("the published form", "jagged input", jagged_gain),
        rounded_bits=results.rounded.bits,
        rounded=_changes(results.rounded.measured - results.measured["inclusive, GRU"]),
        rounded_bytes=(f"{results.rounded.bytes:,.0f}", f"{results.rounded.bytes_before:,.0f}"),
        networks=[(name, wider, _values(one)) for (name, wider), one in results.networks.items()],
        published_inclusive=numbers["inclusive, GRU"],
        events=f"{results.events:,}",
        a_class=f"{results.events // len(results.classes):,}",
    )


def _sample(results: Results, selection: Mapping[str, tuple[int, int, int]]) -> list[tuple[str, list[str]]]:
    classes, each = list(results.classes.values()), results.events // len(results.classes)
    published = [selection[name] for name in results.classes]
    parents = [results.parents[name] for name in results.classes]
    threshold = results.config.analysis.lepton_min_pt
    return [
        ("events simulated", [f"{one.made:,}" for one in classes]),
        (
            f"with an electron or muon above {threshold:g} GeV",
            [_share(one.with_lepton, one.made) for one in classes],
        ),
        ("published", [_share(with_lepton, raw) for raw, with_lepton, _ in published]),
        ("of these isolated, that is selected", [_share(one.selected, one.with_lepton) for one in classes]),
        ("published", [_share(selected, with_lepton) for _, with_lepton, selected in published]),
        ("selected of simulated", [_share(one.selected, one.made) for one in classes]),
        ("published", [_share(selected, raw) for raw, _, selected in published]),
        ("parton levels of the selected", [f"{one.parents:,}" for one in classes]),
        ("take part: as many of each class", [f"{each:,}"] * len(classes)),
        ("their parton levels", [f"{count:,}" for count, _ in parents]),
        ("independent events they are worth at least", [f"{effective:,.0f}" for _, effective in parents]),
    ]


def _particles(results: Results) -> list[tuple[str, list[str]]]:
    def cell(counts: np.ndarray) -> str:
        low, high = np.quantile(counts, [0.05, 0.95])
        return f"{counts.mean():.0f} [{low:.0f}, {high:.0f}]"

    classes = list(results.classes.values())
    return [(kind, [cell(one.particles[kind]) for one in classes]) for kind in classes[0].particles]


def _in_errors(change: Measured) -> NDArray[np.float64]:
    """Give a difference in units of its error."""
    return change.mean / np.maximum(change.error, 1e-12)


def verdict(first: str, second: str, change: Measured) -> str:
    """Say in a sentence what a difference, the second less the first, shows and what it does not."""
    sizes = _in_errors(change)
    found = {
        "better": [word for word, size in zip(_QUANTITIES, sizes, strict=True) if size > RESOLVED],
        "worse": [word for word, size in zip(_QUANTITIES, sizes, strict=True) if size < -RESOLVED],
    }
    said = [f"{how} in {', '.join(words)}" for how, words in found.items() if words]
    if not said:
        return f"{second} against {first}: **not resolved** by this sample."
    rest = len(_QUANTITIES) - sum(map(len, found.values()))
    return f"{second} is {' and '.join(said)} than {first}{'; the rest is not resolved' * bool(rest)}."


def stragglers(histories: Mapping[str, Sequence[Sequence[Mapping[str, float]]]]) -> list[str]:
    """Say in a sentence a network which of its trainings ended far from the others, by the loss on left-out events."""
    said = []
    for name, trainings in histories.items():
        last = np.array([training[-1]["val_loss"] for training in trainings])
        far = last > FAR * np.median(last)
        if far.any():
            losses = ", ".join(f"{loss:.3f}" for loss in last[far])
            said.append(
                f"{far.sum()} of the {len(last)} trainings of {name} went wrong: a loss of {losses} on left-out events "
                f"at the end, where the median is {np.median(last):.3f}. They are part of its numbers."
            )
    return said


def order(measured: Mapping[str, Measured]) -> str:
    """Say in which quantities the order of the three networks is seen that is published for the tt̄ area."""
    names = ("HLF", "particle sequence", "inclusive, GRU")
    sizes = np.array([_in_errors(measured[second] - measured[first]) for first, second in pairwise(names)])
    seen, against = (sizes > RESOLVED).all(axis=0), (sizes < -RESOLVED).any(axis=0)
    found = (("seen", seen), ("contradicted", against), ("not resolved", ~seen & ~against))
    words = [f"{how} in {', '.join(np.array(_QUANTITIES)[which])}" for how, which in found if which.any()]
    return f"The order {' < '.join(names)}, which is published for the tt̄ area, is **{', '.join(words)}**."


def _values(one: Measured) -> list[str]:
    return [f"{value:.4f} ± {error:.4f}" for value, error in zip(one.mean, one.error, strict=True)]


def _changes(change: Measured) -> list[str]:
    cells = []
    for value, error in zip(change.mean, change.error, strict=True):
        text = f"{value:+.4f} ± {error:.4f}".replace("-", "−")
        cells.append(f"**{text}**" if abs(value) > RESOLVED * error else text)
    return cells


def _share(part: int, whole: int) -> str:
    return f"{part:,} ({100 * part / whole:.1f} %)"

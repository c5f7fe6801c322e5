"""The look of every figure: CMS-like axes, small panels, colours that colour-blind readers can tell apart."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib
import mplhep

INK = "#1b2027"
MUTED = "#6a7380"
GRID = "#dfe3e8"

PALETTE = ("#0072b2", "#d55e00", "#00896b", "#b0508a", "#8a6d00", "#5b5bb5", "#7a4a2a", "#52606d")
"""Colours of the classes on white, three after Okabe and Ito; each has a contrast of 3:1 or more."""

DARK_PALETTE = ("#58b4ec", "#ff9350", "#3ccba2", "#e58fc4", "#d9b94a", "#a3a3f0", "#cf9a75", "#a9b6c4")
"""The same colours on a dark page."""

CLASS_DASHES: tuple[Any, ...] = ("-", (0, (5, 1.6)), (0, (1.6, 1.2)), (0, (6, 1.5, 1.5, 1.5)))
"""Line styles of the classes, so that no figure speaks through colour alone."""

MODEL_DASHES: tuple[Any, ...] = ("-", (0, (5, 1.6)), (0, (1.6, 1.2)), (0, (6, 1.5, 1.5, 1.5)), (0, (9, 2)))
MODEL_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")

PANEL = (4.2, 3.6)
"""Width and height of one panel in inches; a page scales it to the width it has."""


@contextmanager
def applied() -> Iterator[None]:
    """Set matplotlib up for the time of a ``with`` block: mplhep's CMS style, scaled to small panels.

    Text stays text in SVG, so that it can be searched and takes the fonts of the page, and nothing in a name
    is taken for TeX.
    """
    settings: Any = {
        **mplhep.style.CMS,
        "figure.figsize": PANEL,
        "figure.constrained_layout.use": True,
        "figure.facecolor": "none",
        "axes.facecolor": "none",
        "savefig.facecolor": "none",
        "font.sans-serif": ["TeX Gyre Heros", "DejaVu Sans"],
        "font.size": 11,
        "axes.titlesize": 11,
        "axes.titlelocation": "left",
        "axes.titleweight": "bold",
        "legend.fontsize": 9.5,
        "legend.labelspacing": 0.35,
        "legend.handlelength": 2.4,
        "text.color": INK,
        "axes.labelcolor": INK,
        "axes.edgecolor": INK,
        "axes.titlecolor": INK,
        "xtick.color": INK,
        "ytick.color": INK,
        "grid.color": GRID,
        "grid.linestyle": "-",
        "grid.linewidth": 0.6,
        "grid.alpha": 1.0,
        "axes.axisbelow": True,
        "axes.unicode_minus": True,
        "axes.linewidth": 0.9,
        "lines.linewidth": 1.7,
        "xtick.major.size": 5,
        "ytick.major.size": 5,
        "xtick.minor.size": 2.5,
        "ytick.minor.size": 2.5,
        "xtick.major.width": 0.8,
        "ytick.major.width": 0.8,
        "xtick.minor.width": 0.6,
        "ytick.minor.width": 0.6,
        "svg.fonttype": "none",
        "path.simplify_threshold": 0.2,
        "text.parse_math": False,
    }
    with matplotlib.rc_context(settings):
        yield


def class_colours(classes: Sequence[str]) -> dict[str, str]:
    """Return the one colour of each class."""
    return {name: PALETTE[k % len(PALETTE)] for k, name in enumerate(classes)}


def class_dashes(classes: Sequence[str]) -> dict[str, Any]:
    """Return the one line style of each class."""
    return {name: CLASS_DASHES[k % len(CLASS_DASHES)] for k, name in enumerate(classes)}

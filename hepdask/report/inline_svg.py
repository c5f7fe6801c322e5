"""Figures as SVG that can stand inside a page: no clashes of names, no styles that leak, no addresses."""

from __future__ import annotations

import io
import re
from xml.etree import ElementTree

import matplotlib
from markupsafe import Markup
from matplotlib.figure import Figure

from hepdask.report import style

_REFERENCE = re.compile(r"#([\w-]+)")
_FONT = re.compile(r"font-family:[^;]*;? ?")
_LONG_NUMBER = re.compile(r"-?\d+\.\d{3,}")
#: Browsers take the first font of the page that they have; this is the widest of those that stand in for it.
_WIDEST = "DejaVu Sans"
_GEOMETRY = frozenset({"d", "x", "y", "width", "height", "transform"})
_VARIABLES = {
    style.INK: "--ink",
    style.MUTED: "--muted",
    style.GRID: "--grid",
    **{colour: f"--c{k}" for k, colour in enumerate(style.PALETTE)},
}
_COLOUR = re.compile("|".join(_VARIABLES))


def inline(figure: Figure, name: str, label: str) -> Markup:
    """Render a figure as an ``svg`` element.

    Parameters
    ----------
    figure : Figure
        The figure.
    name : str
        Unique in the page; it goes in front of every id of the drawing.
    label : str
        What the figure shows, for those who cannot see it.

    Returns
    -------
    Markup
        An element that scales to the width it is given, takes fonts and colours from the page
        (custom properties ``--ink``, ``--muted``, ``--grid``, ``--c0`` …), and is the same for the same data.
    """
    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": name, "font.sans-serif": [_WIDEST]}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    figure.set_layout_engine("none")  # the PDF that follows keeps the places, which take long to find
    root = ElementTree.fromstring(buffer.getvalue())
    used = set(_REFERENCE.findall(" ".join(v for e in root.iter() for v in e.attrib.values())))
    for element in root.iter():
        _drop_children(element, {"metadata", "style"})
        element.text, element.tail = _unless_blank(element.text), _unless_blank(element.tail)
        element.tag = _local(element.tag)
        element.attrib = dict(
            _attribute(_local(key), value, name)
            for key, value in element.attrib.items()
            if _local(key) != "id" or value in used
        )
    box = root.attrib["viewBox"]
    root.attrib = {"viewBox": box, "role": "img", "aria-label": label}
    return Markup(ElementTree.tostring(root, encoding="unicode"))


def _local(name: str) -> str:
    """Strip the namespace, which a page written in HTML implies."""
    return name.rpartition("}")[2]


def _drop_children(element: ElementTree.Element, tags: set[str]) -> None:
    """Remove what belongs to a file of its own: its metadata and its style sheet."""
    for child in [child for child in element if _local(child.tag) in tags]:
        element.remove(child)


def _unless_blank(text: str | None) -> str | None:
    """Drop the white space that only lays out the source."""
    return text if text and text.strip() else None


def _attribute(key: str, value: str, prefix: str) -> tuple[str, str]:
    """Return an attribute with its ids made unique and its colours and fonts left to the page."""
    if key == "id":
        return key, f"{prefix}-{value}"
    if key in _GEOMETRY:
        return key, _LONG_NUMBER.sub(lambda found: f"{float(found.group()):.2f}", " ".join(value.split()))
    if key == "style":
        value = _COLOUR.sub(lambda found: f"var({_VARIABLES[found.group()]})", value)
        value = _FONT.sub("", value)
    return key, _REFERENCE.sub(rf"#{prefix}-\1", value)

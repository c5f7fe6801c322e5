"""Small reports, and what every one of their pages must hold."""

from __future__ import annotations

import itertools
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np

from hepdask.report import ModelResult, RunFacts, write_report

CLASSES = ["qcd", "ttbar", "wjets"]


SELECTION_KEYS = ("dataset", "label", "files", "events_read", "events_selected", "events_lost")


def toy_features(rng: np.random.Generator, labels: np.ndarray) -> dict[str, dict[str, np.ndarray]]:
    """Draw the 14 high-level features by class, shaped as after the selection."""
    by_class: dict[str, dict[str, np.ndarray]] = {}
    for k, name in enumerate(CLASSES):
        n = int((labels == k).sum())
        jets = rng.poisson([2.6, 4.4, 1.6][k], n)
        angle = {f: rng.uniform(-np.pi, np.pi, n) for f in ("phiMET", "LepPhi")}
        isolation = {
            f: np.where(rng.random(n) < 0.55, 0, rng.exponential([0.12, 0.04, 0.035][k], n)).clip(0, 0.45)
            for f in ("LepIsoCh", "LepIsoGamma", "LepIsoNeu")
        }
        values = {
            "HT": rng.gamma(2.2, [70, 130, 55][k], n) + 30 * jets,
            "MET": rng.gamma(2.0, [12, 34, 26][k], n),
            "phiMET": angle["phiMET"],
            "MT": np.abs(rng.normal([25, 70, 72][k], [25, 40, 22][k], n)),
            "nJets": jets,
            "nBjets": rng.binomial(jets, [0.05, 0.38, 0.03][k]),
            "LepPt": 23 + rng.exponential([12, 35, 22][k], n),
            "LepEta": 2.5 * np.tanh(rng.normal(0, [0.8, 0.5, 0.7][k], n)),
            "LepPhi": angle["LepPhi"],
            **isolation,
            "LepCharge": rng.choice([-1, 1], n),
            "LepIsEle": rng.integers(0, 2, n),
        }
        for feature, column in values.items():
            by_class.setdefault(feature, {})[name] = np.asarray(column, dtype=np.float64)
    return by_class


def toy_run(labels: np.ndarray, rng: np.random.Generator, **changes: Any) -> RunFacts:
    facts: dict[str, Any] = {
        "title": "Event topology: tt̄, W+jets and QCD",
        "classes": CLASSES,
        "features": toy_features(rng, labels),
        "selection": [
            dict(zip(SELECTION_KEYS, row, strict=True))
            for row in (
                ("qcd", 0, 12, 1_200_000, 8_423, 0),
                ("ttbar", 1, 4, 80_000, 21_034, 512),
                ("wjets", 2, 4, 120_000, 27_876, 0),
            )
        ],
        "notes": ["One file of ttbar could not be read: 512 events are missing (0.64 % of the dataset)."],
        "configuration": "store:\n  path: store.zarr\nsplit:\n  test: 0.2 # <fraction>\n",
        "versions": {"hepdask": "0.1.0", "python": "3.11.7", "tensorflow": "2.18.1", "uproot": "5.7.0"},
        "steps": [
            {"step": "prepare", "wall_s": 83.2, "cpu_s": 151.0},
            {"step": "train", "wall_s": 913.4, "cpu_s": 1740.9},
            {"step": "evaluate", "wall_s": 21.0, "cpu_s": 20.4},
        ],
    }  # fmt: skip
    return RunFacts(**{**facts, **changes})


VOID = {"meta", "link", "br", "hr", "img", "input", "path", "use"}


class Outline(HTMLParser):
    """What a screen reader meets, in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: dict[int, str] = {}
        self.open: list[int] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(len(self.elements) - 1)

    def handle_endtag(self, tag):
        while self.open and self.elements[self.open[-1]][0] != tag:
            self.open.pop()
        if self.open:
            self.open.pop()

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data):
        for place in self.open:
            self.text[place] = self.text.get(place, "") + data

    def all(self, *tags):
        return [attributes for tag, attributes in self.elements if tag in tags]


def check_page(page: Path) -> Outline:
    """Check what holds for every report."""
    html = page.read_text(encoding="utf-8")
    outline = Outline(html)
    assert len(html) < 3_000_000
    assert outline.all("html")[0]["lang"] == "en"
    assert any(m.get("name") == "viewport" for m in outline.all("meta"))
    levels = [int(tag[1]) for tag, _ in outline.elements if re.fullmatch("h[1-6]", tag)]
    assert levels.count(1) == 1
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    for picture in outline.all("svg", "img"):
        assert picture["role"] == "img"
        assert len(picture["aria-label"]) > 20
    assert html.count("<table") == html.count("<caption") > 0
    assert html.count("<figure") == html.count("<figcaption") > 0
    assert all(cell.get("scope") in ("row", "col", "rowgroup", "colgroup") for cell in outline.all("th"))
    for place, (tag, _) in enumerate(outline.elements):
        if tag in ("title", "h1", "h2", "h3", "caption", "figcaption", "a", "summary"):
            assert outline.text[place].strip(), f"{tag} without text"
    ids = [attributes["id"] for _, attributes in outline.elements if attributes.get("id")]
    assert len(ids) == len(set(ids))
    targets = re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)|aria-labelledby="([^"]+)"', html)
    assert {"".join(found) for found in targets} <= set(ids)
    check_self_contained(html, outline, page.parent)
    return outline


def check_self_contained(html: str, outline: Outline, folder: Path) -> None:
    """Nothing is fetched; links lead to files that are there."""
    assert not outline.all("script", "iframe", "object", "embed")
    assert not re.search(r"(?:src|href|action)\s*=\s*[\"']?\s*(?:https?:|//)", html)
    assert not re.search(r"@import|url\((?!#)", html)
    for link in outline.all("a"):
        if not link["href"].startswith("#"):
            assert (folder / link["href"]).exists(), link["href"]


def small_report(tmp_path, labels, scores, history=(), **changes):
    rng = np.random.default_rng(1)
    features = {"HT": {name: rng.normal(100, 9, int((labels == k).sum())) for k, name in enumerate(CLASSES)}}
    run = toy_run(labels, rng, **{"features": features, **changes})
    model = ModelResult("only one", labels, scores, list(history), {})
    return write_report(tmp_path, run, [model])

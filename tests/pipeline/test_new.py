"""`hepdask new`: from an empty folder to scores, for classes, branches and features that are not the published ones."""

import json
from pathlib import Path

import numpy as np
import pytest
import uproot
import yaml
from helpers import events as made
from helpers.commands import hepdask

import hepdask as package
from hepdask.errors import ConfigError

CALLED = {"EFlowTrack.PT": "track_momentum", "MissingET.MET": "missing.energy"}
MINE = """

def scalar_sum(events):
    return ak.sum(events.Jet.PT, axis=1) + ak.sum(events.Jet.Mass, axis=1)


def muons_apart(events):
    return ak.num(events.MuonTight.PT) <= 2
"""


def write_dijets(path, n, seed, hardest):
    """Write muon events with jets up to `hardest`; jet masses are written as the jets' BTag + 1 would be."""
    events = made.random_events(n, seed, candidates=10, leptons=4)
    rng = np.random.default_rng(seed)
    for event in events:
        event["jets"] = [
            made.thing(pt, 0.5, 0.1, btag=0) for pt in rng.uniform(hardest / 2, hardest, rng.integers(2, 6))
        ]
    path.parent.mkdir(parents=True, exist_ok=True)
    return made.write_root(
        path, events, tree="events", called=CALLED | {"Jet.BTag": "tagged", "Jet.Phi": "Jet.Mass"}
    )


@pytest.mark.slow
def test_a_new_project_with_other_classes_and_branches(tmp_path):
    project = tmp_path / "deep" / "resonances"
    made_it = hepdask("new", project)
    assert made_it.returncode == 0, made_it.stderr
    assert "# resonances" in (project / "README.md").read_text()

    for label, hardest in (("zprime", 300), ("zjets", 80)):
        write_dijets(project / f"data/{label}/one.root", 150, hardest, hardest)
    config = yaml.safe_load((project / "config.yaml").read_text())
    config["fileset"] = {
        label: {"files": {f"data/{label}/*.root": "events"}, "metadata": {"label": label}}
        for label in ("zprime", "zjets")
    }
    config["analysis"] |= {
        "classes": ["zjets", "zprime"],
        "leptons": ["muon"],
        "branches": CALLED | {"Jet.BTag": "tagged"},
        "reads": {"Jet": ["Mass"]},
    }
    config["analysis"]["selections"]["muons_apart"] = "analysis.py:muons_apart"
    config["analysis"]["features"]["scalar_sum"] = "analysis.py:scalar_sum"
    config["analysis"]["lepton_max_isolation"] = 2.0
    config["models"] = {"forest": {"trees": 20}}
    config["training"]["models"] = ["forest"]
    config["cluster"] = {"kind": "local", "workers": 1, "dashboard_port": 0}
    (project / "config.yaml").write_text(yaml.safe_dump(config))
    with (project / "analysis.py").open("a") as functions:
        functions.write(MINE)

    done = hepdask("run", "config.yaml", cwd=project)
    assert done.returncode == 0, done.stderr
    store = package.open_store(project / "run/store.zarr")
    assert store.classes == ["zjets", "zprime"]
    metrics = json.loads((project / "run/metrics.json").read_text())
    assert metrics["models"]["forest"]["accuracy"] > 0.9, "jets of 300 GeV and of 80 GeV can be told apart"

    done = hepdask(
        "predict",
        "run/models/forest",
        "data/zprime/one.root",
        "--code",
        "analysis.py",
        "--tree",
        "events",
        "--out",
        "new.root",
        cwd=project,
    )
    assert done.returncode == 0, done.stderr
    scores = uproot.open(project / "new.root")["scores"].arrays()
    assert scores["entry"].tolist() == list(range(150))
    selected = scores[scores["reason"] == 0]
    assert len(selected) > 10
    assert np.mean(selected["score_zprime"] > 0.5) > 0.9


def test_the_project_as_it_comes(tmp_path, monkeypatch):
    """Only files are missing: configuration and functions are right as they are, and tell of every missing thing."""
    project = package.new(tmp_path / "as-it-comes")
    monkeypatch.chdir(project)
    config = package.load_config("config.yaml")
    assert list(config.analysis.features) == ["leading_jet_pt"]
    events = made.to_awkward(made.random_events(20, 3))
    from hepdask.analysis import user_functions

    for kind in ("selections", "features"):
        for reference in getattr(config.analysis, kind).values():
            assert len(user_functions.apply(reference, events, kind.removesuffix("s"))) == 20
    done = hepdask("run", "config.yaml", cwd=project)
    assert done.returncode == 1
    assert "data/signal/*.root" in done.stderr


def test_an_existing_folder_is_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(ConfigError, match="exists already"):
        package.new(tmp_path)
    assert [path.name for path in Path(tmp_path).iterdir()] == ["mine.txt"]

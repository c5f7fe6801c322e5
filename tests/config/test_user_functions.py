"""Functions of the user: what runs is what the driver read, and what was made with another source is refused."""

import os
import pickle
import shutil
import subprocess
import sys

import awkward as ak
import pytest
from helpers import events as made

from hepdask import prepare
from hepdask.analysis.topology import extract
from hepdask.config import Config, Topology, load_config, user_functions
from hepdask.errors import ConfigError, StoreError
from hepdask.files import atomic
from hepdask.pipeline import tune as steps_tune
from hepdask.pipeline.prepare import identity, open_prepared
from hepdask.pipeline.training_key import events_key, study_key, training_key

ANALYSIS = """
from __future__ import annotations

import signal
from dataclasses import dataclass

import awkward as ak
import numpy as np
from cuts import hard
from tools.sums import total


@dataclass
class Factor:
    value: float = 1.0


def jets(events):
    import late

    assert signal.SIGINT
    return total(ak.num(events.Jet.PT[events.Jet.PT > hard.PT])) * Factor().value * late.SCALE
"""


@pytest.fixture
def project(tmp_path, monkeypatch):
    """Make a folder with a file, a package and modules beside it, and names of the standard library; stand in it."""
    folder = tmp_path / "project"
    files = {
        "analysis.py": ANALYSIS,
        "cuts/__init__.py": "",
        "cuts/hard.py": "from .values import PT\n",
        "cuts/values.py": "PT = 0.0\n",
        "tools/__init__.py": "",
        "tools/sums.py": "import numpy as np\n\n\ndef total(x):\n    return np.asarray(x, float)\n",
        "late.py": "SCALE = 1.0\n",
        "signal.py": "raise SystemExit('my own signal.py was run')\n",
        "dataclasses.py": "raise SystemExit('my own dataclasses.py was run')\n",
        "unrelated.py": "raise SystemExit('nobody imports this')\n",
    }
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    monkeypatch.chdir(folder)
    return folder


def made_analysis():
    return Topology(features={"jets": "analysis.py:jets"})


def numbers(events, settings):
    """Count what the function counts, without it."""
    selected = extract(events, Topology()).selected
    return ak.num(events.Jet.PT).to_numpy()[selected], extract(events, settings).high_level[:, 14]


EDITS = {
    "analysis.py": ("Factor().value * late", "Factor().value * 3 * late"),
    "cuts/values.py": ("0.0", "50.0"),
    "late.py": ("1.0", "3.0"),
    "tools/sums.py": ("float)", "float) * 3"),
}


def edit(folder, name):
    text = (folder / name).read_text()
    assert EDITS[name][0] in text
    (folder / name).write_text(text.replace(*EDITS[name]))


@pytest.mark.parametrize("name", EDITS)
def test_every_file_that_is_imported_counts(project, name):
    before = made_analysis()
    edit(project, name)
    after = made_analysis()
    assert before.features["jets"].identity != after.features["jets"].identity
    events = made.to_awkward(made.random_events(30, 3))
    expected, found = numbers(events, before)
    assert found.tolist() == expected.tolist()  # what was read, not what is there now
    assert numbers(events, after)[1].tolist() != expected.tolist()


@pytest.mark.parametrize("name", ["unrelated.py", "signal.py", "new.py"])
def test_files_that_are_not_imported_do_not_count(project, name):
    before = made_analysis()
    (project / name).write_text("raise SystemExit('changed')\n")
    assert made_analysis() == before


def test_where_the_project_lies_does_not_matter(project, tmp_path, monkeypatch):
    here = identity(Config(analysis=made_analysis()))
    shutil.copytree(project, tmp_path / "elsewhere" / "other name")
    shutil.rmtree(project)
    monkeypatch.chdir(tmp_path)
    there = Topology(features={"jets": "elsewhere/other name/analysis.py:jets"})
    assert identity(Config(analysis=there)) == here


def test_the_source_is_all_that_travels(project, tmp_path):
    """A process that stands elsewhere, where another file has the same name, and sees nothing of the project."""
    carried = pickle.dumps(made_analysis().features["jets"])
    shutil.rmtree(project)
    other = tmp_path / "other"
    other.mkdir()
    (other / "analysis.py").write_text("raise SystemExit('another one')")
    (other / "late.py").write_text("raise SystemExit('another one')")
    (tmp_path / "carried").write_bytes(carried)
    program = f"""
import pickle, sys
import awkward as ak
function = pickle.load(open({str(tmp_path / "carried")!r}, "rb"))
events = ak.Array({{"Jet": ak.Array([{{"PT": [1.0, 2.0]}}, {{"PT": [3.0]}}])}})
before = set(sys.path)
print(function.load()(events).tolist(), set(sys.path) == before)
"""
    done = subprocess.run(
        [sys.executable, "-P", "-c", program], cwd=other, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": ""}, timeout=120,
    )  # fmt: skip
    assert done.stdout.strip() == "[2.0, 1.0] True", done.stderr


def test_a_store_is_made_by_what_the_driver_has(project, make_config, client):
    """Workers that stand elsewhere and go on living; an edit is refused, and counts in a new store."""
    config = make_config(analysis={"features": {"jets": "analysis.py:jets"}})
    found = prepare(config, client).store.arrays().hlf
    assert ak.all(found.jets >= found.nJets)
    assert ak.any(found.jets > found.nJets)
    edit(project, "cuts/values.py")
    edited = make_config(analysis={"features": {"jets": "analysis.py:jets"}})
    for way in (open_prepared, lambda config: prepare(config, client)):
        with pytest.raises(
            StoreError, match=r"jets: analysis\.py:jets with source .*\n.*Give another store\.path"
        ):
            way(edited)
    other = make_config(analysis={"features": {"jets": "analysis.py:jets"}}, output="other")
    after = prepare(other, client).store.arrays().hlf
    assert ak.sum(after.jets) < ak.sum(found.jets)
    assert open_prepared(config) is not None  # made with what that configuration had read


def test_studies_and_trainings_are_of_the_events_they_were_made_with(project, make_config, client):
    """An edited function, another cut, another order of features: each in a store of its own."""

    def prepared(output, **analysis):
        functions = {"features": {"jets": "analysis.py:jets", "same": "analysis.py:jets"}}
        config = make_config(output=output, analysis=functions | analysis)
        return config, prepare(config, client).store

    config, store = prepared("first")
    key, training = study_key(store, config), training_key(store, config, "forest")
    best = config.folder / "tuning" / "forest" / "best.json"
    atomic.write_sealed(best, {"events": events_key(store, config), "parameters": {"trees": 7}})
    assert steps_tune.tuned(config, store, ["forest"]) == {"forest": {"trees": 7}}
    others = [
        prepared("cut", lepton_min_pt=23.5),
        prepared("order", features={"same": "analysis.py:jets", "jets": "analysis.py:jets"}),
    ]
    edit(project, "analysis.py")
    others.append(prepared("edited"))
    for other, made_of in others:
        assert study_key(made_of, other) != key
        assert training_key(made_of, other, "forest") != training
        atomic.write_bytes(other.folder / "tuning" / "forest" / "best.json", best.read_bytes())
        with pytest.raises(ConfigError, match=r"best\.json: found on other events.*run: hepdask tune"):
            steps_tune.tuned(other, made_of, ["forest"])


def test_an_installed_module_is_compared(tmp_path, monkeypatch):
    """A worker whose file is another; one that has another in memory than on its disk; one that has none."""
    text = "import numpy as np\n\n\ndef one(events):\n    return np.ones(len(events))\n"
    for name in ("driver", "worker"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine_as_installed.py").write_text(text)

    def as_worker(function, folder):
        """Call it in this process, as a worker that finds its modules in a folder."""
        with monkeypatch.context() as context:
            context.syspath_prepend(str(tmp_path / folder))
            return function.load()([0, 0]).tolist()

    def forget():
        sys.modules.pop("mine_as_installed", None)
        user_functions._seen.clear()

    def read_by_driver():
        forget()
        with monkeypatch.context() as context:
            context.syspath_prepend(str(tmp_path / "driver"))
            found = Topology(features={"one": "mine_as_installed:one"}).features["one"]
        forget()
        return found

    same = read_by_driver()
    assert as_worker(same, "worker") == [1.0, 1.0]
    newer = text.replace("ones", "zeros")
    (tmp_path / "driver" / "mine_as_installed.py").write_text(newer)
    (tmp_path / "worker" / "mine_as_installed.py").write_text(newer)
    kept = sys.modules["mine_as_installed"], dict(user_functions._seen)
    changed = read_by_driver()
    sys.modules["mine_as_installed"] = kept[0]
    user_functions._seen.update(kept[1])
    message = r"worker/mine_as_installed\.py: is not what the driver has in .*driver/mine_as_installed\.py"
    with pytest.raises(ConfigError, match=message):  # the file is right, what is in memory is not
        as_worker(changed, "worker")
    forget()
    assert as_worker(changed, "worker") == [0.0, 0.0]
    forget()
    with pytest.raises(ConfigError, match=message):  # the file is newer than the driver's
        as_worker(same, "worker")
    forget()
    with pytest.raises(ConfigError, match="mine_as_installed: cannot be imported here"):
        as_worker(changed, "nowhere")


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("nowhere.py:f", r"nowhere\.py.*cannot be read \(No such file"),
        ("cuts:f", "no installed module has this name"),
        ("analysis.py:missing", "analysis.py defines no missing"),
        ("analysis.py:value", "analysis.py defines no value"),
        ("json:missing", "json has no missing"),
        ("analysis.py", "give package.module:function"),
        ("broken.py:f", r"broken\.py: line 2: not valid Python"),
        ("imports_broken.py:f", r"broken\.py: line 2: not valid Python"),
        ("latin.py:f", r"latin\.py: is not text in UTF-8"),
        ("folder.py:f", r"folder\.py.*cannot be read"),
    ],
)
def test_what_cannot_be_used_is_refused_when_the_configuration_is_read(project, reference, message):
    (project / "broken.py").write_text("def f(events):\n    return (\n")
    (project / "imports_broken.py").write_text("import broken\n\n\ndef f(events):\n    return events\n")
    (project / "latin.py").write_bytes("# é\ndef f(events):\n    pass\n".encode("latin-1"))
    (project / "folder.py").mkdir()
    (project / "config.yaml").write_text(f"analysis: {{selections: {{mine: '{reference}'}}}}\n")
    with pytest.raises(ConfigError, match=message) as raised:
        load_config("config.yaml")
    assert "analysis.selections.mine" in str(raised.value)


@pytest.mark.parametrize("text", ["raise SystemExit(3)", "import no_such_package", "1 / 0"])
def test_a_file_that_fails_says_which(project, text):
    (project / "failing.py").write_text(f"{text}\n\n\ndef f(events):\n    pass\n")
    events = made.to_awkward(made.random_events(3, 3))
    with pytest.raises(ConfigError, match=r"project/failing\.py: cannot be run"):
        extract(events, Topology(features={"f": "failing.py:f"}))


def test_the_order_of_features_counts(project):
    (project / "two.py").write_text("import numpy as np\na = b = lambda events: np.zeros(len(events))\n")
    one, other = (
        identity(Config(analysis=Topology(features={name: f"two.py:{name}" for name in names})))
        for names in ("ab", "ba")
    )
    assert one != other

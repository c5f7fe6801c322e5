"""Folders of models that were damaged, or come from somebody else: the right scores, or an error in words."""

import io
import json
import os
import pickle
import shutil
import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest
from helpers import events as made
from helpers import model_folders as modelfolders
from helpers.model_folders import CHOSEN, CLASSES, KINDS

from hepdask import load_model, predict
from hepdask.errors import ConfigError, HepdaskError, InputError
from hepdask.files import atomic
from hepdask.models.record import RECORD
from hepdask.pipeline.inspect import describe, inspect


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """One model of each kind."""
    place = tmp_path_factory.mktemp("models")
    return {kind: modelfolders.make(place / kind.replace(" ", "-"), kind) for kind in KINDS}


@pytest.fixture(scope="module")
def events():
    return made.to_awkward(made.random_events(30, 3))


@pytest.fixture
def copy(folders, tmp_path):
    def copied(kind):
        return Path(shutil.copytree(folders[kind], tmp_path / "copy"))

    return copied


def test_all_kinds_score(folders, events):
    for folder in folders.values():
        scores = load_model(folder).predict(events)
        selected = ~np.isnan(scores).any(axis=1)
        assert selected.sum() > 5
        assert scores[selected].sum(axis=1) == pytest.approx(1, abs=1e-5)


# Damage

FUZZ = """
    import os, pickle, sys
    from pathlib import Path

    import numpy as np

    from hepdask import load_model
    from hepdask.errors import HepdaskError

    folder, folders, events, seed = Path(sys.argv[1]), *pickle.load(open(sys.argv[2], "rb"))
    rng = np.random.default_rng(seed)

    def score():
        return load_model(folder).predict(events)

    def places(content):
        # every value of a byte once, and then any
        first = {value: place for place, value in enumerate(content)}
        return [*first.values()][::9], rng.integers(0, len(content), 12).tolist()

    def damages(content):
        for chosen in places(content):
            for place in chosen:
                for bit in (0x20, 0xFF):
                    flipped = bytes([content[place] ^ bit])
                    yield f"bit {bit} of byte {place}", content[:place] + flipped + content[place + 1:]
        for end in (0, 1, len(content) // 2, len(content) - 1):
            yield f"the first {end} bytes", content[:end]
        yield "twice", content + content
        yield "without a byte", content[: len(content) // 3] + content[len(content) // 3 + 1:]

    for source in map(Path, folders):
        for file in source.iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
        right, tried, refused = score(), 0, 0
        for file in sorted(source.iterdir()):
            whole = file.read_bytes()
            for what, content in [*damages(whole), ("gone", None)]:
                print(source.name, file.name, what, flush=True)
                (folder / file.name).unlink()
                if content is not None:
                    (folder / file.name).write_bytes(content)
                tried += 1
                try:
                    assert np.array_equal(score(), right, equal_nan=True), "other scores"
                except HepdaskError as error:
                    refused += 1
                    assert file.name in str(error) or str(folder) in str(error), error
                    assert "\\n" not in str(error), error
                (folder / file.name).write_bytes(whole)
        assert refused > 0.9 * tried, (refused, tried)
        for file in folder.iterdir():
            file.unlink()
    print("done")
"""


def test_damage_gives_the_right_scores_or_an_error(folders, events, tmp_path):
    """Bits of every kind of byte, truncation, doubling, loss: in a process of its own, which a library might end."""
    (tmp_path / "given").write_bytes(pickle.dumps(([str(folder) for folder in folders.values()], events, 5)))
    (tmp_path / "place").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(FUZZ), tmp_path / "place", tmp_path / "given"],
        capture_output=True, text=True, timeout=200, env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
    )  # fmt: skip
    last = done.stdout.strip().splitlines()[-1:]
    assert last == ["done"], f"{last}: {done.returncode}\n{done.stderr[-3000:]}"


# What somebody writes who knows how seals are made


def lead(document, *keys):
    for key in keys:
        document = document[key]
    return document


def changed(*keys, value):
    def change(document):
        lead(document, *keys[:-1])[keys[-1]] = value

    return change


CONTENTS = {
    "a column twice": (changed("inputs", "high_level", value=[0, 1, 1]), "inputs.high_level: a column is repeated"),
    "a column too far": (changed("inputs", "high_level", value=[0, 1, 14]), "column 14 of 14"),
    "a negative column": (changed("inputs", "high_level", value=[0, 1, -1]), "inputs.high_level"),
    "no column": (changed("inputs", "high_level", value=[]), "inputs.high_level"),
    "a text as column": (changed("inputs", "high_level", value=[0, 1, "2"]), "inputs.high_level"),
    "another input": (changed("inputs", value={"particles": [0]}), "inputs: .* takes high_level"),
    "an unknown input": (changed("inputs", "weights", value=[0]), "inputs"),
    "NaN": (changed("scaling", "high_level", "shift", 3, value=float("nan")), "scaling.high_level.shift.3"),
    "infinity": (changed("scaling", "high_level", "factor", 3, value=float("inf")), "scaling.high_level.factor.3"),
    "too large for float32": (changed("scaling", "high_level", "shift", 0, value=1e39), "scaling.high_level.shift.0"),
    "a negative width": (changed("scaling", "high_level", "factor", 0, value=-1.0), "scaling.high_level.factor.0"),
    "scaling too short": (changed("scaling", "high_level", value={"shift": [0.0], "factor": [1.0]}), "of 1 features"),
    "scaling of other lengths": (changed("scaling", "high_level", "shift", value=[0.0]), "1 shifts and 14 factors"),
    "one class": (changed("classes", value=["qcd"]), "classes"),
    "other classes": (changed("classes", value=["wjets", "qcd", "ttbar"]), "classes: they are not analysis.classes"),
    "a class twice": (
        lambda d: (d.update(classes=["qcd", "qcd", "x"]), d["analysis"].update(classes=["qcd", "qcd", "x"])),
        "classes: one is repeated",
    ),
    "a class more": (
        lambda d: (d.update(classes=["a", "b", "c", "d"]), d["analysis"].update(classes=["a", "b", "c", "d"])),
        "a network from|cannot be read as trees",
    ),
    "a column less": (changed("inputs", "high_level", value=[0, 1]), "a network from|cannot be read as trees"),
    "an unknown model": (changed("model", value="other"), "model"),
    "another kind of model": (changed("model", value="sequence"), "file: sequence|inputs: sequence"),
    "an unknown setting": (changed("settings", "colour", value=3), "settings: colour"),
    "a file elsewhere": (changed("file", value="../model.keras"), "file"),
    "an unknown key": (changed("more", value=1), "more"),
    "a function without code": (changed("analysis", "features", value={"x": "os:getcwd"}), "code: it is not that of"),
    "physics of another kind": (changed("analysis", value=[1]), "analysis"),
    "a cut that is none": (changed("analysis", "lepton_min_pt", value="much"), "analysis.lepton_min_pt"),
}  # fmt: skip


@pytest.mark.parametrize("kind", ["hlf", "xgboost", "forest"])
def test_contents_are_checked_under_a_right_seal(copy, events, kind):
    folder = copy(kind)
    whole = (folder / RECORD).read_text()
    for what, (change, message) in CONTENTS.items():
        modelfolders.resealed(folder, change)
        with pytest.raises(InputError, match=message) as raised:
            load_model(folder)
        assert str(folder) in str(raised.value), what
        assert "\n" not in str(raised.value), what
        (folder / RECORD).write_text(whole)
    load_model(folder).predict(events)


def test_a_record_without_a_seal_is_refused(copy):
    folder = copy("forest")
    document = json.loads((folder / RECORD).read_text())
    document["inputs"]["high_level"] = [0, 1, 6]
    (folder / RECORD).write_text(json.dumps(document))
    with pytest.raises(HepdaskError, match=r"training\.json: damaged"):
        load_model(folder)


def lambda_layer(marker):
    path = str(marker)
    return modelfolders.saved(sequential([keras.layers.Lambda(lambda x: [open(path, "w"), x][1])]))


def sequential(layers):
    high_level = keras.Input((len(CHOSEN),), name="high_level")
    x = high_level
    for layer in layers:
        x = layer(x)
    return keras.Model({"high_level": high_level}, keras.layers.Dense(len(CLASSES), activation="softmax")(x))


def with_config(change):
    """Make a network whose configuration was changed by hand."""

    def make(marker):
        source, target = zipfile.ZipFile(io.BytesIO(modelfolders.saved(sequential([])))), io.BytesIO()
        document = json.loads(source.read("config.json"))
        change(document, marker)
        with zipfile.ZipFile(target, "w") as archive:
            for name in source.namelist():
                archive.writestr(name, json.dumps(document) if name == "config.json" else source.read(name))
        return target.getvalue()

    return make


def registered(document, marker):
    (Path(marker).parent / "evil.py").write_text(f"open({str(marker)!r}, 'w')\nclass Layer: pass\n")
    document["config"]["layers"][1] |= {
        "module": "evil",
        "class_name": "Layer",
        "registered_name": "evil>Layer",
    }


def function_by_name(document, marker):
    document["config"]["layers"][1]["config"]["activation"] = {
        "module": "os", "class_name": "function", "config": "abort", "registered_name": "abort",
    }  # fmt: skip


def a_class_of_ours_from_elsewhere(document, marker):
    (Path(marker).parent / "evil.py").write_text(f"open({str(marker)!r}, 'w')\nclass Dense: pass\n")
    document["config"]["layers"][1]["module"] = "evil"


def weights_elsewhere(marker):
    source, target, weights = (
        zipfile.ZipFile(io.BytesIO(modelfolders.saved(sequential([])))),
        io.BytesIO(),
        io.BytesIO(),
    )
    weights.write(source.read("model.weights.h5"))
    with h5py.File(weights, "r+") as file:
        file["elsewhere"] = h5py.ExternalLink("/etc/passwd", "/")
    with zipfile.ZipFile(target, "w") as archive:
        for name in source.namelist():
            archive.writestr(name, weights.getvalue() if name == "model.weights.h5" else source.read(name))
    return target.getvalue()


NETWORKS = {
    "a Lambda": (lambda_layer, "holds Lambda of keras.layers"),
    "a registered class": (with_config(registered), "holds Layer of evil"),
    "a function": (with_config(function_by_name), "holds function of os"),
    "a known name of another module": (with_config(a_class_of_ours_from_elsewhere), "holds Dense of evil"),
    "a layer of Keras that is none of ours": (
        lambda marker: modelfolders.saved(sequential([keras.layers.Rescaling(2.0)])), "holds Rescaling",
    ),
    "links": (weights_elsewhere, "lead to other files"),
    "no network": (lambda marker: b"PK\x03\x04 and so on", "cannot be read as a network"),
    "text": (lambda marker: b"import os", "cannot be read as a network"),
    "other inputs": (
        lambda marker: modelfolders.saved(
            keras.Model({"x": (x := keras.Input((3,), name="x"))}, keras.layers.Dense(3)(x))
        ), "a network from",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", NETWORKS)
def test_a_network_of_somebody_else_runs_nothing(copy, tmp_path, monkeypatch, what):
    marker = tmp_path / "ran"
    monkeypatch.syspath_prepend(str(tmp_path))
    make, message = NETWORKS[what]
    folder = copy("hlf")
    modelfolders.resealed(folder, content=make(marker))
    marker.unlink(missing_ok=True)
    with pytest.raises(InputError, match=message):
        load_model(folder)
    assert not marker.exists()


class Runs:
    """Does something when it is read from a pickle."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def arrays(folder, **changes):
    with np.load(folder / "model.npz") as found:
        content = dict(found)
    file = io.BytesIO()
    np.savez(file, **{name: changes.get(name, lambda x: x)(array) for name, array in content.items()})
    return file.getvalue()


FORESTS = {
    "a pickle": {"value": lambda array: np.array([Runs("ran")], object)},
    "a loop": {"left": np.zeros_like},
    "a way out": {"right": lambda array: array + 10**6},
    "a feature too far": {"feature": lambda array: array + 100},
    "a root too far": {"root": lambda array: array + 10**6},
    "no tree": {"root": lambda array: array[:0]},
    "fewer values": {"value": lambda array: array[:-1]},
    "more classes": {"value": lambda array: np.hstack([array, array])},
    "NaN": {"value": lambda array: array * np.nan},
    "other types": {"feature": lambda array: array.astype(float)},
}


@pytest.mark.parametrize("what", FORESTS)
def test_a_forest_of_somebody_else_runs_nothing_and_ends(copy, tmp_path, monkeypatch, what):
    monkeypatch.chdir(tmp_path)
    folder = copy("forest")
    modelfolders.resealed(folder, content=arrays(folder, **FORESTS[what]))
    with pytest.raises(InputError, match=r"model\.npz: cannot be read as trees"):
        load_model(folder)
    assert not Path("ran").exists()


@pytest.mark.parametrize("content", [b"", b"{", b"PK\x03\x04", b"L" * 100])
def test_trees_that_are_none(copy, content):
    folder = copy("xgboost")
    modelfolders.resealed(folder, content=content)
    with pytest.raises(InputError, match=r"model\.ubj: "):
        load_model(folder)


# Functions of the user


@pytest.fixture
def with_code(tmp_path, monkeypatch):
    """A model that needs a function, which says that it was run; whoever made it is gone."""
    monkeypatch.chdir(tmp_path)
    maker = tmp_path / "maker"
    maker.mkdir()
    text = "import numpy as np\nfrom marking import mark\n\nmark()\n\n\n"
    text += "def three(events):\n    return np.full(len(events), 3.0)\n"
    (maker / "analysis.py").write_text(text)
    (maker / "marking.py").write_text(
        f"from pathlib import Path\n\n\ndef mark():\n    Path({str(tmp_path / 'ran')!r}).touch()\n"
    )
    from hepdask.config import Topology
    from hepdask.pipeline.train import keep_code

    analysis = Topology(features={"three": "maker/analysis.py:three"})
    folder = tmp_path / "downloaded"
    code = [kept.model_dump(mode="json") for kept in keep_code(analysis, folder / "code")]
    width = len(analysis.high_level_features)
    modelfolders.make(
        folder, "forest", analysis=analysis.model_dump(mode="json"), code=code,
        scaling={"high_level": {"shift": [0.0] * width, "factor": [1.0] * width},
                 "particles": {"shift": [0.0] * 19, "factor": [1.0] * 19}},
    )  # fmt: skip
    return folder


def test_code_runs_where_it_is_named_alone(with_code, events, tmp_path):
    ran = tmp_path / "ran"
    with pytest.raises(ConfigError) as raised:
        load_model(with_code)
    for words in (
        "three of maker/analysis.py",
        "--code maker/analysis.py",
        f"--code {with_code}/code/analysis.py",
    ):
        assert words in str(raised.value)
    with pytest.raises(ConfigError, match="the model needs functions that it was trained with"):
        predict(with_code, "nowhere.root", tmp_path / "out")
    assert not ran.exists()
    found = [
        load_model(with_code, code=[where]).predict(events)
        for where in ("maker/analysis.py", with_code / "code" / "analysis.py")
    ]
    assert ran.exists()
    assert np.array_equal(found[0], found[1], equal_nan=True)


@pytest.mark.parametrize("edited", ["analysis.py", "marking.py"])
def test_other_code_is_refused(with_code, tmp_path, edited):
    file = tmp_path / "maker" / edited
    file.write_text(file.read_text() + "\n# edited\n")
    with pytest.raises(
        ConfigError, match=r"maker/analysis\.py \(source .*is not the code of .*trained with maker/analysis"
    ):
        load_model(with_code, code=["maker/analysis.py"])
    kept = with_code / "code" / edited
    kept.write_text(kept.read_text() + "\nraise SystemExit\n")
    with pytest.raises(ConfigError, match="is not the code of"):
        load_model(with_code, code=[with_code / "code/analysis.py"])
    assert not (tmp_path / "ran").exists()


def test_code_for_a_model_that_needs_none(folders, with_code):
    with pytest.raises(ConfigError, match="it needs no code; leave out --code"):
        load_model(folders["forest"], code=[with_code / "code/analysis.py"])


# inspect


def test_inspect_tells_of_every_kind(folders, tmp_path):
    run = tmp_path / "run"
    history = {"history": [{"epoch": 1, "loss": 0.5, "accuracy": 0.75}], "facts": {"trees": 9, "nodes": 40}}
    modelfolders.make(run / "models" / "xgboost", "xgboost", **history)
    modelfolders.make(run / "models" / "forest", "forest", facts={"trees": 3, "nodes": 1200})
    modelfolders.make(run / "models" / "hlf", "hlf", history=history["history"], facts={"parameters": 1234})
    (run / "models" / "inclusive" / "checkpoint").mkdir(parents=True)
    shutil.copytree(folders["forest"], run / "models" / "damaged")
    (run / "models" / "damaged" / "model.npz").write_bytes(b"")
    lines = describe(inspect(run))
    assert "  model xgboost: 9 trees, 40 nodes, 1 rounds, loss 0.5000, accuracy 0.7500" in lines
    assert "  model forest: 3 trees, 1,200 nodes" in lines
    assert "  model hlf: 1,234 parameters, 1 epochs, loss 0.5000, accuracy 0.7500" in lines
    assert any(line.startswith("  model inclusive: training is not complete") for line in lines)
    assert any("model.npz: damaged" in line for line in lines)
    assert json.dumps(inspect(run))


def test_the_seal_is_of_the_contents(copy):
    """Another order of keys and other blanks are the same record."""
    folder = copy("forest")
    document = json.loads((folder / RECORD).read_text())
    (folder / RECORD).write_text(json.dumps(dict(sorted(document.items()))))
    load_model(folder)
    assert atomic.read_sealed(folder / RECORD)["model"] == "forest"

"""Names of the user stay apart from each other and from the program's, and keys may hold dots."""

import pytest

from hepdask import load_config
from hepdask.config import Config
from hepdask.config.feature_names import HIGH_LEVEL, PARTICLE
from hepdask.errors import ConfigError


@pytest.fixture(autouse=True)
def functions(tmp_path, monkeypatch):
    """A file with the functions that are named here."""
    (tmp_path / "a.py").write_text("def b(events): ...\ndef c(events): ...\n")
    monkeypatch.chdir(tmp_path)


def fileset(*names):
    return {name: {"files": ["x.root"], "metadata": {"label": "qcd"}} for name in names}


@pytest.mark.unit
@pytest.mark.parametrize(
    "name", ["MET", "ht", "lep_pt", "Energy", "kind", "hlf", "label", *HIGH_LEVEL[2:4], *PARTICLE[-2:]]
)
def test_a_feature_of_ours_is_no_feature_of_yours(name):
    if name == "lep_pt":  # not the same, whatever is lost of it
        features = load_config(None, {"analysis.features": {name: "a.py:b"}}).analysis.features
        assert {key: str(function) for key, function in features.items()} == {name: "a.py:b"}
        return
    with pytest.raises(
        ConfigError, match=rf"analysis.features.{name} is .*built-in feature or field; choose another"
    ):
        load_config(None, {"analysis.features": {name: "a.py:b"}})


@pytest.mark.unit
@pytest.mark.parametrize(
    ("one", "other"),
    [("signal", "Signal"), ("tt bar", "tt-bar"), ("a+", "a-"), ("ﬁt", "fit"), ("a.b", "a_b")],
)
def test_two_names_that_are_one_in_files(one, other):
    for where, value in (
        ("analysis.classes", [one, other]),
        ("analysis.selections", {one: "a.py:b", other: "a.py:c"}),
        ("analysis.features", {one: "a.py:b", other: "a.py:c"}),
        ("fileset", fileset(one, other)),
    ):
        with pytest.raises(ConfigError) as caught:
            load_config(None, {where: value})
        assert f"{where}: {one!r} and {other!r} differ only in what file and column names" in str(
            caught.value
        )


@pytest.mark.unit
@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("", "empty"), (" ", "empty"), (" a", "starts or ends with a space"), ("..", "stands for a folder"),
        ("a\nb", "control character"), ("a\x00", "control character"), ("ä" * 80, "160 bytes long"), ("a/b", "slash"),
    ],
)  # fmt: skip
def test_what_is_no_name(name, reason):
    for where, value in (
        ("analysis.classes", [name, "other"]),
        ("analysis.selections", {name: "a.py:b"}),
        ("analysis.features", {name: "a.py:b"}),
        ("fileset", fileset(name)),
    ):
        if reason == "slash" and where == "fileset":
            Config.model_validate({where: value})  # /Name/Campaign/NANOAODSIM, as CMS has it
            continue
        with pytest.raises(ConfigError, match=reason):
            load_config(None, {where: value})


def test_a_name_of_the_longest_kind_can_be_written(make_config, client, sample_files):
    from hepdask import prepare

    name = "/ttbar/" + "ä" * 71  # 149 bytes
    config = make_config()
    document = {"fileset": {name: {"files": [sample_files["ttbar"]], "metadata": {"label": "ttbar"}}}}
    document |= {"output": str(config.folder), "input": {"chunk_events": 50}}
    store = prepare(Config.model_validate(document), client).store
    assert {part["dataset"] for part in store.parts} == {name}


class TestKeysWithDots:
    """Below a mapping with the user's keys, the rest is one key."""

    @pytest.mark.unit
    @pytest.mark.parametrize(
        ("key", "value", "found"),
        [
            ("analysis.branches.EFlowTrack.PT", "track_pt", lambda c: c.analysis.branches["EFlowTrack.PT"]),
            ("fileset.a.b.metadata.label", "ttbar", lambda c: c.fileset["a.b"].metadata["label"]),
            ("fileset.a.b.metadata.x.y", "z", lambda c: c.fileset["a.b"].metadata["x.y"]),
            ("fileset.a.b.files./d/x.1.root", "Other", lambda c: c.fileset["a.b"].files["/d/x.1.root"]),
            ("fileset.a.b.files./d/y.root.num_entries", 3, lambda c: c.fileset["a.b"].files["/d/y.root"].num_entries),
            ("simulation./d/z.root.events", 7, lambda c: c.simulation["/d/z.root"].events),
            ("models.hlf.learning_rate_drops.5", 0.25, lambda c: c.models.hlf.learning_rate_drops[5]),
            ("training.class_weights.ttbar", 2.0, lambda c: c.training.class_weights["ttbar"]),
            ("tuning.parameters.units.high", 30, lambda c: c.tuning.parameters["units"].high),
            ("cluster.environment.A.B", "c", lambda c: c.cluster["environment"]["A.B"]),
            ("cluster.driver.cores", 3, lambda c: c.cluster["driver"]["cores"]),
            ("cluster.dashboard_port", 0, lambda c: c.cluster["dashboard_port"]),
        ],
    )  # fmt: skip
    def test_is_set(self, tmp_path, key, value, found):
        (tmp_path / "c.yaml").write_text(
            "fileset:\n  a.b:\n    files: {/d/x.1.root: T, /d/y.root: {object_path: T}}\n    metadata: {label: qcd}\n"
            "simulation: {/d/z.root: {process: ttbar, events: 1}}\nanalysis: {branches: {Jet.PT: jet_pt}}\n"
            "models: {hlf: {learning_rate_drops: {5: 0.5}}}\ntuning: {parameters: {units: {low: 1, high: 9}}}\n"
            "cluster: {kind: slurm}\n"
        )
        config = load_config(tmp_path / "c.yaml", {key: value})
        assert found(config) == value
        assert config.analysis.branches["Jet.PT"] == "jet_pt", "the others stay"
        assert len(config.models.hlf.learning_rate_drops) == 1

    @pytest.mark.unit
    @pytest.mark.parametrize(
        ("key", "expected"),
        [
            ("analysi.branches.A.B", "unknown key analysi; did you mean analysis?"),
            ("analysis.branch.A.B", "unknown key branch; did you mean branches?"),
            ("training.ranks.x", "it is a plain value with no keys below it"),
            ("models.hfl.epochs", "unknown key hfl; did you mean hlf?"),
            ("cluster.workers", "what is there is not a mapping"),
            ("", "unknown key"),
        ],
    )
    def test_or_refused(self, tmp_path, key, expected):
        (tmp_path / "c.yaml").write_text("cluster: local\n")
        with pytest.raises(ConfigError, match=rf"^--set {key}: ") as caught:
            load_config(tmp_path / "c.yaml", {key: "x"})
        assert expected in str(caught.value)


@pytest.mark.unit
def test_a_new_key_with_dots_ends_where_a_key_of_the_program_follows():
    found = load_config(
        None, {"simulation./d/new.x.root.process": "qcd", "simulation./d/new.x.root.events": 5}
    ).simulation
    assert {path: (one.process, one.events) for path, one in found.items()} == {"/d/new.x.root": ("qcd", 5)}

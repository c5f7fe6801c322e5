"""Paths as people type them: resolved once, where they are typed, and the same events wherever the cluster stands."""

import contextlib
import json
import os
from pathlib import Path

import pytest
import uproot
from distributed import Client, LocalCluster
from helpers import events as made

import hepdask
from hepdask import inspect, load_config, predict, prepare, train
from hepdask.clusters import load_cluster
from hepdask.config import Config
from hepdask.errors import ConfigError, HepdaskError, InputError
from hepdask.files.paths import resolved, split_tree
from hepdask.input.fileset import input_files


@pytest.mark.unit
def test_what_is_expanded(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("DATA", "/data")
    monkeypatch.setenv("RUN", "run 2")
    for typed, expected in (
        ("x.root", f"{tmp_path}/x.root"),
        ("./a//x.root", f"{tmp_path}/a/x.root"),
        ("../x.root", f"{tmp_path}/../x.root"),
        ("~/x.root", "/home/me/x.root"),
        ("$DATA/x.root", "/data/x.root"),
        ("${DATA}/${RUN}/*.root", "/data/run 2/*.root"),
        ("a$DATA", f"{tmp_path}/a/data"),
        ("folder/", f"{tmp_path}/folder/"),
        ("file:///data/x.root", "/data/x.root"),
        ("file://localhost/data/x.root", "/data/x.root"),
        ("file://x.root", f"{tmp_path}/x.root"),
        ("5$.root", f"{tmp_path}/5$.root"),
        ("root://server//$DATA/~/x.root", "root://server//$DATA/~/x.root"),
        ("simplecache::root://server//x.root", "simplecache::root://server//x.root"),
        ("s3://bucket/x.root", "s3://bucket/x.root"),
    ):
        assert resolved(typed) == expected
        assert resolved(expected) == expected
    for typed, what in (
        ("$NONE/x", "NONE is not set"),
        ("${NO}/x", "NO is not set"),
        ("~nobody-is-called-so/x", "home folder"),
    ):
        with pytest.raises(ValueError, match=what):
            resolved(typed)


@pytest.mark.unit
def test_a_working_directory_that_looks_like_a_pattern(tmp_path, monkeypatch):
    folder = tmp_path / "[run]"
    folder.mkdir()
    for name in ("a.root", "b.root"):
        (folder / name).touch()
    monkeypatch.chdir(folder)
    files = {"q": {"files": ["*.root"], "metadata": {"label": "qcd"}}}
    found = input_files(Config.model_validate({"fileset": files}))
    assert [file.path for file in found] == [f"{folder}/a.root", f"{folder}/b.root"]


@pytest.mark.unit
@pytest.mark.parametrize(
    ("document", "place"),
    [
        ("output: $NONE/x\n", "line 1: output: "),
        ("store:\n  path: ${NONE}/x\n", "line 2: store.path: "),
        ("fileset:\n  a:\n    files: ['$NONE/x.root']\n    metadata: {label: qcd}\n", "line 3: fileset.a.files.0: "),
        ("fileset:\n  a:\n    files:\n      $NONE/x: T\n    metadata: {label: qcd}\n", "line 4: fileset.a.files.$"),
        ("fileset: $NONE/x.json\n", "line 1: fileset: "),
        ("simulation:\n  $NONE/x.root: {process: ttbar, events: 1}\n", "line 2: simulation.$NONE/x.root: "),
    ],
)  # fmt: skip
def test_a_variable_that_is_not_set_is_named_with_its_line(tmp_path, document, place):
    (tmp_path / "c.yaml").write_text(document)
    with pytest.raises(ConfigError) as caught:
        load_config(tmp_path / "c.yaml")
    assert f"c.yaml, {place}" in str(caught.value)
    assert "the environment variable NONE is not set" in str(caught.value)


@pytest.mark.unit
def test_everything_local_is_absolute(tmp_path, monkeypatch):
    """Once read, a configuration means the same from anywhere."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SITE", "site")
    (tmp_path / "c.yaml").write_text(
        "store: {path: $SITE/s.zarr}\nsimulation: {sim/x.root: {process: qcd, events: 1}}\n"
        "fileset: {a: {files: {'d/*.root': T}, metadata: {label: qcd}}, b: {files: [e.root], metadata: {label: qcd}}}\n"
    )
    config = load_config("c.yaml")
    slurm = load_cluster({"kind": "slurm", "log_directory": "$SITE/logs", "shared_temp_directory": "~/x"})
    attached = load_cluster({"kind": "attached", "address": "tls://x:1", "certificate": "c.pem"})
    monkeypatch.chdir("/")
    assert config.folder == tmp_path / "runs/c"
    assert config.store_path == tmp_path / "site/s.zarr"
    assert list(config.simulation) == [f"{tmp_path}/sim/x.root"]
    assert config.fileset["a"].trees[0][:2] == (f"{tmp_path}/d/*.root", "T")
    assert config.fileset["b"].trees[0][:2] == (f"{tmp_path}/e.root", "Delphes")
    assert slurm.log_directory == f"{tmp_path}/site/logs"
    assert slurm.shared_temp_directory == os.path.expanduser("~/x")
    assert load_cluster({"kind": "slurm"}).log_directory == "/runs/jobs"
    assert attached.certificate == f"{tmp_path}/c.pem"


class TestTrees:
    """`file.root:Tree`, as uproot and coffea have it."""

    @pytest.mark.unit
    def test_where_it_is_split(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        Path("odd.root:name").touch()
        for address, expected in (
            ("/a/x.root:Events", ("/a/x.root", "Events")),
            ("/a/*.root:dir/Events", ("/a/*.root", "dir/Events")),
            ("root://server:1094//x.root:Events", ("root://server:1094//x.root", "Events")),
            ("root://server:1094//x.root", ("root://server:1094//x.root", None)),
            ("/a:b/x.root", ("/a:b/x.root", None)),
            (f"{tmp_path}/odd.root:name", (f"{tmp_path}/odd.root:name", None)),
        ):
            assert split_tree(address) == expected

    @pytest.mark.unit
    @pytest.mark.parametrize(
        "files",
        [["{}:Events"], {"{}:Events": None}, {"{}:Events": "Events"}, {"{}:Events": {}}, {"{}": "Events"}],
    )
    def test_in_filesets(self, sample_files, files):
        path = sample_files["qcd"]
        files = (
            [one.format(path) for one in files]
            if isinstance(files, list)
            else {k.format(path): v for k, v in files.items()}
        )
        config = Config.model_validate({"fileset": {"a": {"files": files, "metadata": {"label": "qcd"}}}})
        assert [(file.path, file.tree) for file in input_files(config)] == [(path, "Events")]

    @pytest.mark.unit
    def test_two_trees_of_one_file(self, sample_files):
        files = [f"{sample_files['qcd']}:one", f"{sample_files['qcd']}:other"]
        config = Config.model_validate({"fileset": {"a": {"files": files, "metadata": {"label": "qcd"}}}})
        assert [file.tree for file in input_files(config)] == ["one", "other"]

    @pytest.mark.unit
    @pytest.mark.parametrize("behind", ["Other", {"object_path": "Other"}])
    def test_two_names_for_one_tree(self, behind):
        with pytest.raises(ValueError, match="the tree is Events in the path, and Other behind it"):
            Config.model_validate(
                {"fileset": {"a": {"files": {"x.root:Events": behind}, "metadata": {"label": "qcd"}}}}
            )

    def test_prepare_and_inspect(self, make_config, client, sample_files, tmp_path):
        path = made.write_root(tmp_path / "odd.root:name.root", made.random_events(40, 5), tree="mine")
        whole = prepare(make_config(files={"ttbar": [f"{path}:mine"]}), client).store
        assert {(part["file"], part["tree"]) for part in whole.parts} == {(path, "mine")}
        assert [tree["name"] for tree in inspect(f"{path}:mine")["trees"]] == ["mine"]
        with pytest.raises(InputError, match="no tree is called other"):
            inspect(f"{path}:other")


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory):
    """Two folders with files of the same names and other events, and a cluster that was started in the first."""
    folder = tmp_path_factory.mktemp("standing")
    for name, size in (("A", 30), ("B", 50)):
        for place, label in enumerate(("ttbar", "wjets", "qcd")):
            (folder / name / "data").mkdir(parents=True, exist_ok=True)
            seed = 100 * size + place
            made.write_root(
                folder / name / f"data/{label}.root", made.random_events(size, seed, candidates=10)
            )
    with contextlib.chdir(folder / "A"), LocalCluster(
        n_workers=1, threads_per_worker=1, host="127.0.0.1", dashboard_address=None, silence_logs=40
    ) as cluster, Client(cluster) as client:  # fmt: skip
        assert list(client.run(os.getcwd).values()) == [str(folder / "A")]
        yield folder, client


@pytest.mark.parametrize(
    "use",
    [
        hepdask.load_model, inspect, hepdask.open_store,
        lambda path: hepdask.export(path, "onnx", "x.onnx"),
        lambda path: hepdask.predict(path, "x.root", "x"),
        lambda path: hepdask.load_config(None, {"analysis.features": {"mine": f"{path}/mine.py:f"}}),
        lambda path: hepdask.import_published(Config.model_validate({"analysis": {"convention": "reference"}}), [path]),
    ],
)  # fmt: skip
def test_whatever_names_a_path_expands_it(use, tmp_path, monkeypatch):
    monkeypatch.setenv("PLACE", str(tmp_path))
    monkeypatch.delenv("NO_SUCH_PLACE", raising=False)
    with pytest.raises(HepdaskError, match=f"{tmp_path}/none"):
        use("$PLACE/none")
    with pytest.raises(ConfigError, match="NO_SUCH_PLACE is not set"):
        use("${NO_SUCH_PLACE}/none")


def test_a_cluster_that_stands_elsewhere(elsewhere, monkeypatch):
    """Prepare and predict take the events of the folder in which the command is given, however they are named."""
    folder, client = elsewhere
    monkeypatch.chdir(folder / "B")
    monkeypatch.setenv("HERE", "data")
    files = {
        "ttbar": ["data/ttbar.root"],
        "wjets": {"./data/wj*.root": "Delphes"},
        "qcd": ["$HERE/qcd.root:Delphes"],
    }
    fileset = {name: {"files": paths, "metadata": {"label": name}} for name, paths in files.items()}
    document = {"output": "run", "fileset": fileset, "models": {"forest": {"trees": 3}}}
    config = Config.model_validate(
        document | {"training": {"models": ["forest"]}, "input": {"retry_wait": 0.01}}
    )
    store = prepare(config, client).store
    assert store.path == folder / "B/run/store.zarr"
    ours = {}
    for label in fileset:
        with uproot.open(folder / f"B/data/{label}.root") as file:
            ours[str(folder / f"B/data/{label}.root")] = str(file.file.uuid)
    assert {part["file"]: part["uuid"] for part in store.parts} == ours
    assert sum(row["events_read"] for row in store.manifest["selection"]) == 150

    train(config, client=client)
    for typed in ("data/ttbar.root", "data/ttb*.root", "$HERE/ttbar.root:Delphes", Path("data/ttbar.root")):
        done = predict("run/models/forest", typed, "scores", client=client)
        assert done.events == 50
        assert done.files == [folder / "B/scores/ttbar.root"]
        with uproot.open(done.files[0]) as file:
            told = json.loads(str(file["description"]))
        assert (told["file"], told["tree"]) == (str(folder / "B/data/ttbar.root"), "Delphes")
    with pytest.raises(ConfigError, match="the tree is Delphes in the path, and Other in --tree"):
        predict("run/models/forest", "data/ttbar.root:Delphes", "scores", tree="Other", client=client)
    with pytest.raises(InputError, match="No such file"):
        predict("run/models/forest", "data/only-there.root", "scores", client=client)

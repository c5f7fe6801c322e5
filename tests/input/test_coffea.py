"""Filesets as coffea itself writes them, not as one might think that it does."""

import gzip
import json
from pathlib import Path

import awkward as ak
import pytest
from coffea.dataset_tools import DataGroupSpec
from coffea.dataset_tools.preprocess import get_steps
from helpers import events as made
from helpers.stores import assert_equal

from hepdask import load_config, prepare
from hepdask.input.fileset import input_files

RECORDED = sorted((Path(__file__).parent / "preprocessed").glob("*.json.gz"))
STEPS = {
    "ttbar.root": ((0, 24), (24, 48), (48, 70)), "wjets.root": ((0, 30), (30, 60)), "qcd.root": ((0, 25), (25, 50)),
    "missing.root": None,
}  # fmt: skip


def configured(path, tmp_path):
    (tmp_path / "c.yaml").write_text(
        f"fileset: {path}\noutput: {tmp_path}/run\ncluster: {{dashboard_port: 0}}\n"
    )
    return load_config(tmp_path / "c.yaml")


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.name.partition(".")[0])
def test_what_preprocess_wrote(path, sample_files, make_config, client, tmp_path, monkeypatch):
    """Recorded by preprocessed/record.py; relative paths, forms, and files of which coffea knows nothing."""
    monkeypatch.chdir(Path(sample_files["qcd"]).parent)
    config = configured(path, tmp_path)
    files = {Path(file.path).name: file for file in input_files(config)}
    assert set(files) == set(STEPS) - (set() if "_all" in path.name else {"missing.root"})
    assert {name: file.steps for name, file in files.items()} == {name: STEPS[name] for name in files}
    assert load_config(config.folder.parent / "c.yaml") == config
    if path.name.startswith("spec_available"):
        plain = prepare(make_config(output=str(tmp_path / "plain")), client).store
        assert_equal(prepare(config, client).store, plain)


def test_what_coffea_serialises_now(sample_files, tmp_path):
    """The installed coffea: its steps of real files, one of them empty, and its own models of a fileset."""
    empty = made.write_root(tmp_path / "empty.root", [made.event()] * 0)
    paths = [*sample_files.values(), empty]
    asked = ak.Array(
        [{"file": path, "object_path": "Delphes", "steps": None, "uuid": None} for path in paths]
    )
    known = {one["file"]: one for one in get_steps(asked, step_size=25).to_list()}
    assert known[empty]["steps"] == [[0, 0]]
    fileset = {}
    for path in paths:
        facts = {key: known[path][key] for key in ("object_path", "steps", "num_entries", "uuid")}
        name = Path(path).stem
        label = "qcd" if path == empty else name
        fileset[name] = {"files": {path: facts}, "metadata": {"label": label}, "form": None}
    spec = DataGroupSpec(fileset)
    for number, text in enumerate(
        (json.dumps(fileset), spec.model_dump_json(), json.dumps(spec.model_dump()))
    ):
        with gzip.open(tmp_path / f"{number}.json.gz", "wt") as file:
            file.write(text)
        found = {
            file.path: file for file in input_files(configured(tmp_path / f"{number}.json.gz", tmp_path))
        }
        assert set(found) == set(paths)
        for path in paths:
            expected = tuple(tuple(step) for step in known[path]["steps"] if step != [0, 0])
            assert (found[path].steps, found[path].uuid) == (expected, known[path]["uuid"])

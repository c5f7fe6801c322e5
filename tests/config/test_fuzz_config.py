"""Configurations and command lines at random: whatever is wrong is said in words, and with exit code 2."""

import copy
import json
import logging
import os
from pathlib import Path

import click
import pytest
import yaml
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hepdask import load_config, logs
from hepdask.cli import cli
from hepdask.clusters import HTCondor, Slurm, load_cluster
from hepdask.config import Config
from hepdask.config.document import read_value
from hepdask.errors import ConfigError, HepdaskError

pytestmark = pytest.mark.unit

FUZZ = settings(
    derandomize=True, max_examples=150, deadline=None, database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip
WORDS = [
    "no", "on", "125", "0700", "1:30:00", "2024-01-01", "~", "", "1e400", ".nan", "0x", "<<", "=", "*a", "&a x",
    "!!set {}", "!x y", "[", "{", "- a", "a: b: c", "'", '"\\ud800"', "%", "@", "`", "| x", "\t", "#", "local", "tcp://x",
    "$NONE", "~nobody/x", "/", "\0", "9" * 5000, "é", "\u2028", "[[[[]]]]", "{a: 1, a: 2}", "true", "-1", "1.5",
    "file:///x", "x.root:T", "[1, 2]", "{a: b}",
]  # fmt: skip
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.sampled_from(WORDS),
    st.dates(), st.binary(max_size=4),
)  # fmt: skip
VALUES = st.recursive(
    SCALARS,
    lambda below: st.lists(below, max_size=3) | st.dictionaries(SCALARS, below, max_size=3),
    max_leaves=6,
)
KEYS = [*Config.model_fields, "hlf", "epochs", "a", "branches", "", "x.root", "files"]


def whole(model):
    """Every key of a model with its default, as a document has it."""
    return json.loads(model.model_dump_json(by_alias=True))


def example(folder):
    document = whole(Config())
    document["fileset"] = {
        "a": {"files": {"x.root": {"steps": [[0, 5]]}, "y.root": "T"}, "metadata": {"label": "qcd"}}
    }
    document["simulation"] = {"x.root": {"process": "qcd", "events": 1}}
    document["tuning"]["parameters"] = {"units": {"low": 1, "high": 2}, "hidden": [[5], [6]]}
    document["analysis"]["features"] = {"mine": f"{folder}/analysis.py:mine"}
    return document


def places(value, keys=()):
    """List the keys of all that stands in a document."""
    yield keys
    below = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in below:
        yield from places(item, (*keys, key))


def changed(document, data):
    """Replace, remove, or add something somewhere."""
    document = copy.deepcopy(document)
    for _ in range(data.draw(st.integers(1, 3))):
        keys = data.draw(st.sampled_from([keys for keys in places(document) if keys]))
        at = document
        for key in keys[:-1]:
            at = at[key]
        how = data.draw(st.sampled_from(["replace", "remove", "add"]))
        if how == "replace":
            at[keys[-1]] = data.draw(VALUES)
        elif how == "remove":
            del at[keys[-1]]
        elif isinstance(at, dict):
            at[data.draw(SCALARS)] = data.draw(VALUES)
        else:
            at.append(data.draw(VALUES))
        if not document:
            break
    return document


def in_words(load, source, *names):
    """Load; what is wrong has to be told, with the place, as an error of ours."""
    try:
        return load(source)
    except ConfigError as error:
        told = str(error)
        assert told.strip(), "an error without words"
        assert "Traceback" not in told
        for line in told.split("\n  "):
            assert not names or any(name in line for name in names), f"no place: {line}"
        for noise in ("pydantic", "union[", "function-", "dict[", "nullable["):
            assert noise not in told, told
        return None


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    package = logging.getLogger("hepdask")
    before = list(package.handlers), package.level, package.propagate
    place = tmp_path_factory.mktemp("fuzz")
    (place / "analysis.py").write_text("def mine(events): ...\n")
    assert in_words(Config.model_validate, example(place)), "the example itself is right"
    yield place
    # options of the command lines that are tried hold for the whole process
    package.handlers[:], package.level, package.propagate = before
    os.environ.pop(logs.VARIABLE, None)


@FUZZ
@given(data=st.data())
def test_configurations_of_wrong_values(folder, data):
    path = folder / "values.yaml"
    path.write_text(
        yaml.dump(changed(example(folder), data), allow_unicode=True),
        encoding="utf-8",
        errors="surrogatepass",
    )
    config = in_words(load_config, path, "values.yaml")
    if config is not None:
        again = folder / "again.yaml"
        again.write_text(config.to_yaml())
        assert load_config(again).to_yaml() == config.to_yaml()


def test_a_fileset_that_is_not_there_is_told_with_the_line_that_names_it(folder):
    """Found by the test above, with more examples than it has here."""
    path = folder / "values.yaml"
    path.write_text("output: run\nfileset: none.yaml\n")
    with pytest.raises(ConfigError, match=r"values.yaml, line 2: fileset: .*none.yaml: cannot be read"):
        load_config(path)


@FUZZ
@given(data=st.data())
def test_configurations_of_broken_text(folder, data):
    text = yaml.safe_dump(example(folder))
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(text)))
        stop = min(len(text), start + data.draw(st.integers(0, 12)))
        text = text[:start] + data.draw(st.sampled_from(WORDS) | st.text(max_size=5)) + text[stop:]
    path = folder / "text.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    in_words(load_config, path, "text.yaml")


@FUZZ
@given(data=st.data())
def test_clusters(folder, data):
    model = data.draw(st.sampled_from([Slurm, HTCondor]))
    path = folder / "site.yaml"
    path.write_text(yaml.dump(changed(whole(model()), data)), encoding="utf-8", errors="surrogatepass")
    in_words(load_cluster, str(path), "site.yaml", "cluster: ")


@FUZZ
@given(key=st.lists(st.sampled_from(KEYS), max_size=5), word=st.sampled_from(WORDS) | st.text(max_size=8))
def test_overrides(key, word):
    name = ".".join(key)
    in_words(lambda text: load_config(None, {name: read_value(text, f"--set {name}")}), word)


def commands(command, words=()):
    if isinstance(command, click.Group):
        for name, below in command.commands.items():
            yield from commands(below, (*words, name))
    else:
        yield words, command


@FUZZ
@given(data=st.data())
def test_command_lines(folder, data):
    """Words of all kinds in any place; the configurations that they name are wrong or are not there."""
    here = folder / "commands"
    here.mkdir(exist_ok=True)
    (here / "wrong.yaml").write_text("output: {}\n")
    names, command = data.draw(st.sampled_from(list(commands(cli))))
    options = [name for option in command.params for name in option.opts if name.startswith("-")]
    arbitrary = st.sampled_from([word for word in WORDS if "\0" not in word and word not in ("local", "/")])
    paths = st.sampled_from(["wrong.yaml", "none.yaml", "none/models/hlf", "."])
    words = data.draw(
        st.lists(st.sampled_from(options) | arbitrary | paths | st.text("abc=-./$", max_size=6), max_size=6)
    )
    before = Path.cwd()
    os.chdir(here)
    try:
        if names[0] == "new" and not any(word.startswith("-") for word in words):
            words = [*words, "--nothing"]  # it would make what it is told
        if names[0] in ("cluster", "simulate"):
            words = [*words, "--nothing"]  # no cluster is started here
        done = CliRunner().invoke(cli, [*names, *words])
    finally:
        os.chdir(before)
    error = done.exception
    if isinstance(error, SystemExit) or error is None:
        assert done.exit_code in (0, 1, 2)
        assert done.exit_code != 1 or not error or names[0] == "inspect"
    else:
        assert isinstance(error, HepdaskError), (names, words, repr(error))
    assert "Traceback" not in done.output

"""Documents of people: what stands twice, is bent by YAML, or never ends is refused with its line."""

import gzip
import json
import time

import pytest

from hepdask import load_config
from hepdask.clusters import load_cluster
from hepdask.config.document import read_document, read_value
from hepdask.errors import ConfigError

pytestmark = pytest.mark.unit

FILESET = "fileset: {a: {files: [x.root], metadata: {label: qcd}}}\n"


@pytest.fixture
def write(tmp_path):
    def write(text, name="c.yaml"):
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


def refused(path, *expected, load=load_config):
    with pytest.raises(ConfigError) as caught:
        load(path)
    for words in expected:
        assert words in str(caught.value)
    return str(caught.value)


class TestTwice:
    @pytest.mark.parametrize(
        ("text", "key", "lines"),
        [
            ("analysis: {}\nsplit: {}\nanalysis: {}\n", "analysis", (1, 3)),
            ("models:\n  hlf: {epochs: 2}\n  hlf:\n    epochs: 3\n", "models.hlf", (2, 3)),
            ("training:\n  ranks: 1\n  seed: 2\n  'ranks': 4\n", "training.ranks", (2, 4)),
            (
                "models: {hlf: {learning_rate_drops: {5: 0.1,\n '5': 0.2}}}",
                "models.hlf.learning_rate_drops.5",
                (1, 2),
            ),
        ],
    )
    def test_both_lines_are_named(self, write, text, key, lines):
        refused(write(text), f"c.yaml, line {lines[1]}: {key}: ", f"in lines {lines[0]} and {lines[1]}")

    def test_in_json_and_in_clusters(self, write):
        refused(
            write('{"a": {"files": [],\n "metadata": {"label": "qcd"},\n "files": ["x.root"]}}', "f.json"),
            "f.json, line 3: a.files", "in lines 1 and 3", load=read_document,
        )  # fmt: skip
        path = write("kind: local\nworkers: 1\nworkers: 2\n", "cluster.yaml")
        refused(str(path), "cluster.yaml, line 3: workers", load=load_cluster)

    def test_two_spellings_of_one_file(self, write, tmp_path):
        files = f"{{{tmp_path}/x.root: T, '{tmp_path}/./x.root': U}}"
        text = f"fileset:\n  a:\n    files: {files}\n    metadata: {{label: qcd}}"
        refused(write(text), "line 3: fileset.a.files: two of its keys mean the same")

    def test_merging_is_no_doubling(self, write):
        text = "models:\n  hlf: &base {epochs: 3, batch_size: 7}\n  sequence:\n    <<: *base\n    batch_size: 9\n"
        models = load_config(write(text)).models
        assert (models.sequence.epochs, models.sequence.batch_size) == (3, 9)
        assert models.hlf.batch_size == 7

    def test_overrides_change_no_other_place_of_an_alias(self, write):
        text = "models:\n  hlf: &base {epochs: 3}\n  sequence: *base\n"
        models = load_config(write(text), {"models.hlf.epochs": 4}).models
        assert (models.hlf.epochs, models.sequence.epochs) == (4, 3)


class TestBent:
    @pytest.mark.parametrize(
        ("word", "read"),
        [
            ("no", "false"), ("Yes", "true"), ("on", "true"), ("OFF", "false"), ("125", "the number 125"),
            ("1e5", "the number 100000.0"), ("1.10", "the number 1.1"), ("0x1F", "the number 31"),
            ("0700", "the number 448"), ("1:30:00", "the number 5400"), ("2024-01-01", "a date"),
            ("1_000", "the number 1000"),
        ],
    )  # fmt: skip
    def test_where_text_is_due(self, write, word, read):
        for text in (f"analysis:\n  classes: [{word}, b]\n", f"store:\n  path: {word}\n"):
            message = refused(write(text), f"YAML reads `{word}` as {read}", "put it in quotation marks")
            assert "c.yaml, line 2: " in message
        for quoted in (f"'{word}'", f'"{word}"', f"!!str {word}"):
            assert load_config(write(f"analysis: {{classes: [{quoted}, b]}}")).analysis.classes == (word, "b")

    def test_keys(self, write):
        for word in ("no", "2018", "2024-01-01", "1.5", "~"):
            text = f"analysis: {{classes: [qcd]}}\nfileset:\n  {word}: {{files: [x.root], metadata: {{label: qcd}}}}\n"
            refused(write(text), "c.yaml, line 3: ", f"`{word}`", "put it in quotation marks")

    @pytest.mark.parametrize("word", ["yes", "off", "true", "0700", "1:30", "2024-01-01"])
    def test_where_a_number_is_due(self, write, word):
        refused(write(f"training:\n  seed: {word}\n"), "c.yaml, line 2: training.seed: ")
        refused(write(f"input:\n  retry_wait: {word}\n"), "c.yaml, line 2: input.retry_wait: ")

    @pytest.mark.parametrize(
        ("word", "value"), [("1e-3", 1e-3), (".5e3", 500.0), ("1e5", 1e5), ("2", 2.0), ("+1.5", 1.5)]
    )
    def test_numbers_as_people_write_them(self, write, word, value):
        config = load_config(
            write(f"input: {{retry_wait: {word}}}\ntuning: {{parameters: {{learning_rate: [{word}]}}}}")
        )
        assert config.input.retry_wait == value
        assert config.tuning.parameters == {"learning_rate": [value]}

    def test_truth_where_truth_is_due(self, write):
        training = load_config(write("training: {kernel: no, rate_per_rank: on}")).training
        assert (training.kernel, training.rate_per_rank) == (False, True)

    @pytest.mark.parametrize(
        "text",
        ["walltime: 1:30:00", "account: 0700", "queue: no", "environment: {N: 3}", "driver: {memory: 4}"],
    )
    def test_in_clusters(self, write, text):
        path = write(f"kind: slurm\n{text}\n", "site.yaml")
        refused(
            str(path), "site.yaml, line 2: ", "YAML reads `", "put it in quotation marks", load=load_cluster
        )

    def test_in_filesets_of_their_own(self, write):
        write('{"a": {"files": ["x.root"],\n "metadata": {"label": 125}}}', "fs.json")
        path = write(f"fileset: {write('', 'x').parent}/fs.json\n")
        refused(path, "fs.json, line 2: fileset.a.metadata.label: YAML reads `125`")

    def test_on_the_command_line(self):
        for word in ("no", "2018"):
            with pytest.raises(ConfigError, match=rf"--set analysis.classes: .*YAML reads `{word}`"):
                load_config(None, {"analysis.classes": read_value(f"[{word}, b]", "--set analysis.classes")})
        with pytest.raises(ConfigError, match="--set account: YAML reads `0700` as the number 448"):
            read_value("0700", "--set account")
        with pytest.raises(ConfigError, match="""put it in quotation marks: --set output='"2018"'"""):
            load_config(None, {"output": read_value("2018", "--set output")})
        assert load_config(None, {"analysis.classes": read_value("['no', b]", "")}).analysis.classes == (
            "no",
            "b",
        )


class TestPlaces:
    """Every error gives file and line, wherever the value stands."""

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("analysis:\n  lepton_minpt: 3\n", "line 2: analysis.lepton_minpt: unknown key; did you mean lepton_min"),
            ("training:\n  models:\n  - hlf\n  - hfl\n", "line 4: training.models.1: "),
            ("split: {}\ntraining:\n  ranks: 1\n  port_range: [5, 1]\n", "line 4: training.port_range goes from 5"),
            ("training:\n  ranks: 2\n\n  min_ranks: 3\n", "line 4: training.min_ranks is 3"),
            ("fileset:\n  a.b:\n    files: []\n    metadata:\n      label: higgs\n", "line 5: fileset.a.b.metadata."),
            ("fileset:\n  a:\n    metadata: {label: qcd}\n    files:\n      x:\n        steps: [[5, 1]]\n", "line 6: "),
            ("tuning:\n  parameters:\n    units: {low: 3,\n      high: 1}\n", "line 3: tuning.parameters.units: low "),
            ("tuning:\n  parameters:\n    units: {high: 1}\n", "line 3: tuning.parameters.units.low: Field required"),
            ("analysis:\n", "line 1: analysis: YAML reads an empty value as nothing; give a value, or leave"),
            ("fileset:\n  a:\n    files: {x: [1]}\n    metadata: {label: qcd}\n", "line 3: fileset.a.files.x: give"),
        ],
    )  # fmt: skip
    def test_in_configurations(self, write, text, expected):
        refused(write(text), f"c.yaml, {expected}")

    def test_in_clusters(self, write):
        for text, expected in (
            ("kind: slurm\nwalltime: '5'\n", "line 2: walltime: '5' is not a wall time"),
            ("kind: slurm\n\nprocesses: 2\n", "line 3: processes: 2 workers cannot share"),
            ("kind: local\nworker: 2\n", "line 2: worker: unknown key; did you mean workers?"),
            ("workers: 2\nkind: slrum\n", "line 2: kind: 'slrum' is not one of"),
            (
                "kind: slurm\nenvironment:\n  A: b\n  MY_TOKEN: secret\n",
                "line 4: environment.MY_TOKEN looks like",
            ),
        ):
            refused(str(write(text, "site.yaml")), f"site.yaml, {expected}", load=load_cluster)


class TestNoDocument:
    @pytest.mark.parametrize(
        ("content", "expected"),
        [
            ("", "line 1: a configuration is a mapping of sections, this is empty"),
            ("# all of it\n", "is empty"),
            ("- a\n- b\n", "line 1: a configuration is a mapping of sections, this is a list"),
            ("a: 1\n---\nb: 2\n", "line 2: a second document starts here"),
            ("a: [1\nb: 2\n", "not valid YAML"),
            ("split: {}\n\x07: 1\n", "line 2: not valid YAML: a character"),
            (b"split: {}\nb: \xff\n", "line 2: not valid YAML: not text in UTF-8"),
            ("a: !!python/object/apply:os.system [x]\n", "line 1: a: `!!python/object/apply:os.system` is not"),
            ("a: 1\nb: !include x.yaml\n", "line 2: b: `!include` is not known"),
            ("a: *b\n", "line 1: a: `*b` is not defined"),
            ("a: &a\n  b: *a\n", "line 2: a.b: `*a` contains itself"),
            ("? [a, b]\n: 1\n", "a key is one word, this is a list"),
            ("a: {<<: 3}\n", "`<<` takes a mapping"),
            ("a: " + "[" * 100_000, "deeper than 64 levels"),
            ("training: {seed: " + "9" * 10_000 + "}", "training.seed: a number of 10000 digits is too long"),
            (b"\x1f\x8b\x08", "not text in UTF-8"),
        ],
    )  # fmt: skip
    def test_is_told_in_words(self, write, content, expected):
        refused(write(content), expected)

    def test_aliases_that_multiply(self, write):
        lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
        lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 30)]
        start = time.monotonic()
        refused(write("\n".join(lines)), "line 6", "endlessly long")
        assert time.monotonic() - start < 60, "it did not end"

    def test_files_that_cannot_be_read(self, write, tmp_path, monkeypatch):
        refused(tmp_path / "none.yaml", "cannot be read: No such file")
        refused(tmp_path, "cannot be read: Is a directory")
        refused(write(b"not compressed", "c.yaml.gz"), "damaged gzip file")
        refused(write(gzip.compress(b"split: {}")[:-4], "c.yaml.gz"), "damaged gzip file")
        monkeypatch.setattr("hepdask.config.document._LONGEST", 1000)
        refused(write("#" * 1001), "too long for a configuration")
        refused(write(gzip.compress(b"#" * 1001), "c.yaml.gz"), "too long for a configuration")


def test_json_as_json_writes_it(write):
    """Letters beyond 16 bits come in two halves, and all that Python writes is read as Python reads it."""
    value = {
        "a": "tt̄ \U0001f600 \\ud83d / \t",
        "numbers": [1, -2, 1.5, 1e300, 1e-7, 12345678901234567890],
        "b": [True, False, None],
    }
    for text in (json.dumps(value), json.dumps(value, indent=2), json.dumps(value, ensure_ascii=False)):
        assert read_document(write(text, "x.json")).value == value


@pytest.mark.parametrize("key", ["9223372036854775808", "12", "-99999999999999999999999"])
def test_a_number_is_no_key_however_large(tmp_path, key):
    path = tmp_path / "c.yaml"
    path.write_text(f"output: run\nsplit:\n  {key}: 1\n")
    with pytest.raises(ConfigError, match=rf"c.yaml, line 3: .*{key}"):
        load_config(path)

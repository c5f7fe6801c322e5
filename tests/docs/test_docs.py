"""Whatever README and docs tell people to type is run here, or says above itself why it is not.

A block of sh or Python that stands below the line ``<!-- not run: REASON -->`` is not run; its commands must still be
commands of this program with options that they have, and its Python must be Python. All other blocks of a page are
run in order, in one folder that holds a small finished run in place of the demo's.
"""

import contextlib
import copy
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import dask
import pytest
import yaml
from helpers import events as made

import hepdask
from hepdask.cli import cli
from hepdask.config import Config

ROOT = Path(__file__).parents[2]
PAGES = [
    "README.md",
    *sorted(f"docs/{page.relative_to(ROOT / 'docs')}" for page in (ROOT / "docs").rglob("*.md")),
]
BLOCK = re.compile(
    r"(?:<!-- not run: (?P<reason>.+?) -->\n)?^```(?P<language>\w*)\n(?P<text>.*?)^```$", re.M | re.S
)
LANGUAGES = {"sh", "python", "yaml", ""}


def blocks(page, *languages):
    """Give (language, reason or None, text) of the fenced blocks of a page."""
    found = [match.group("language", "reason", "text") for match in BLOCK.finditer((ROOT / page).read_text())]
    assert {language for language, _, _ in found} <= LANGUAGES, f"{page}: only {LANGUAGES} are known"
    return [block for block in found if block[0] in languages]


@pytest.mark.parametrize("page", PAGES)
def test_what_is_not_run_could_be(page, monkeypatch, tmp_path):
    """Commands have the options they are shown with, Python compiles, YAML is a configuration."""
    for command in _commands(cli):
        for parameter in command.params:
            if isinstance(parameter.type, click.Path):
                monkeypatch.setattr(parameter.type, "exists", False)
            if parameter.is_eager:  # such an option says something and ends the command
                monkeypatch.setattr(parameter, "callback", lambda context, _, given: given and context.exit())
    for language, _reason, text in blocks(page, "sh", "python", "yaml"):
        if language == "python":
            compile(text, page, "exec")
        elif language == "yaml":
            with monkeypatch.context() as there:
                there.chdir(tmp_path)
                for file, function in re.findall(r"(\w+\.py):(\w+)", text):
                    with (tmp_path / file).open("a") as source:
                        source.write(f"def {function}(events): ...\n")
                Config.model_validate(yaml.safe_load(text))
        else:
            for words in _typed(text):
                _parse(words)


def _commands(command):
    yield command
    for below in getattr(command, "commands", {}).values():
        yield from _commands(below)


def _typed(text):
    """Yield the words behind `hepdask` of each line that begins with it."""
    for line in text.replace("\\\n", " ").splitlines():
        for piece in re.split(r"&&|;", line):
            words = shlex.split(piece, comments=True)
            if words[:1] == ["hepdask"]:
                yield words[1:]


def _parse(words):
    """Check the words as click does, without running anything."""
    command = cli
    while isinstance(command, click.Group) and words and words[0] in command.commands:
        command, words = command.commands[words[0]], words[1:]
    with contextlib.suppress(click.exceptions.Exit):
        command.make_context("hepdask", list(words))


@pytest.fixture(scope="module")
def demo(tmp_path_factory, sample_files, client):
    """A folder with the shipped configurations, ROOT files, and a finished run of forests as runs/demo."""
    folder = tmp_path_factory.mktemp("reader")
    (folder / "configs").symlink_to(ROOT / "configs")
    fileset = {name: {"files": [path], "metadata": {"label": name}} for name, path in sample_files.items()}
    document = {"output": str(folder / "runs/demo"), "fileset": fileset, "training": {"models": ["forest"]}}
    config = Config.model_validate(document | {"models": {"forest": {"trees": 5}}})
    hepdask.prepare(config, client)
    hepdask.train(config, client=client)
    hepdask.evaluate(config, client)
    for name in ("one", "other"):
        (folder / "runs" / name).symlink_to(folder / "runs/demo")
    (folder / "events.root").symlink_to(sample_files["ttbar"])
    return folder


@pytest.fixture
def own_dask_config():
    """Take back what a block sets in Dask's configuration."""
    before = copy.deepcopy(dask.config.config)
    yield
    dask.config.config.clear()
    dask.config.config.update(before)


@pytest.mark.usefixtures("own_dask_config")
@pytest.mark.parametrize("page", [page for page in PAGES if page != "README.md"])
def test_what_a_page_says_works(page, demo, monkeypatch):
    monkeypatch.chdir(demo)
    names = {"hepdask": hepdask, "events": made.to_awkward(made.random_events(20, 1))}
    for language, reason, text in blocks(page, "sh", "python"):
        if reason is None and language == "python":
            exec(compile(text, page, "exec"), names)
        elif reason is None:
            shell(text, demo)


def shell(text, folder):
    """Run a block as a person would who has activated the environment."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", text], cwd=folder, env={**os.environ, "PATH": path},
        capture_output=True, text=True, timeout=500,
    )  # fmt: skip
    assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"
    return done


@pytest.mark.slow
def test_readme_alone_leads_to_scores(tmp_path):
    """Who types what README says, in its order, has scores of the own files in the end."""
    for label, seed in (("signal", 1), ("background", 2)):
        made.write_root(tmp_path / f"{label}.root", made.random_events(250, seed, candidates=10, leptons=4))
    names = {"hepdask": hepdask, "events": made.to_awkward(made.random_events(20, 1))}
    for language, reason, text in blocks("README.md", "sh", "python"):
        if reason is None and language == "python":
            exec(compile(text, "README.md", "exec"), names)
        elif reason is None:
            shell(text, tmp_path)
    import uproot

    with uproot.open(tmp_path / "myanalysis/scores/signal.root") as file:
        assert file["scores"].num_entries == 250
    assert (tmp_path / "myanalysis/run/report.html").exists()


def test_every_page_is_in_the_readme_or_the_site():
    """No page is written and then forgotten: the navigation of the site names all of them."""
    text = (ROOT / "mkdocs.yml").read_text()
    for page in PAGES[1:]:
        assert page.removeprefix("docs/") in text, f"{page} is not in the navigation of mkdocs.yml"


def test_the_site_builds_without_a_warning(tmp_path):
    """A dead link, a missing anchor or a page outside the navigation is a warning, and a warning is a failure."""
    words = [
        "-m",
        "mkdocs",
        "build",
        "--strict",
        "--config-file",
        str(ROOT / "mkdocs.yml"),
        "--site-dir",
        str(tmp_path),
    ]
    done = subprocess.run(
        [sys.executable, *words], cwd=ROOT, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    commands = (tmp_path / "commands.html").read_text()
    assert "hepdask cluster check" in commands, "the reference of commands was not generated"
    for page in tmp_path.glob("*.html"):
        loaded = re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="(https?://[^"]+)"', page.read_text())
        assert not loaded, f"{page.name} loads from elsewhere: {loaded}"


def test_links_of_the_readme_lead_somewhere():
    targets = re.findall(r"\]\((?!https?://)([^)#]+)", (ROOT / "README.md").read_text())
    assert targets
    assert [target for target in targets if not (ROOT / target).exists()] == []

"""The notebooks of the documentation, and events for them."""

from pathlib import Path

import pytest

from helpers import events as made

FOLDER = Path(__file__).parents[2] / "docs/notebooks"


NOTEBOOKS = sorted(path.name for path in FOLDER.glob("*.ipynb"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with events of both processes, of which those called ttbar have harder jets."""
    folder = tmp_path_factory.mktemp("notebooks")
    (folder / "events").mkdir()
    for seed, process in enumerate(("ttbar", "wjets")):
        events = made.random_events(150, seed, candidates=15, leptons=4)
        for event in events:
            event["jets"] = [jet for jet in event["jets"] if (jet["pt"] > 50) == (process == "ttbar")]
        made.write_root(folder / f"events/{process}.root", events)
    return folder

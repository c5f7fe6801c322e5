"""What of the input was lost, and whether that is too much."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from hepdask.config import Config
from hepdask.errors import InputError
from hepdask.files.atomic import write_sealed
from hepdask.input.contents import FileContent
from hepdask.input.lost import Lost
from hepdask.pipeline.prepare_task import BAD_NAMED
from hepdask.store.layout import LEDGER


class Ledger:
    """The losses of one run.

    A file that cannot be opened is taken to be as long as the others are on average. Bad events are summed up by file
    and reason: their number, and the entries of the first few.

    Parameters
    ----------
    config : Config
        Uses `store`.
    contents : list of FileContent
        The files that could be opened.
    lost : list of Lost
        What could not be read already.
    """

    def __init__(self, config: Config, contents: list[FileContent], lost: list[Lost]) -> None:
        self._config = config
        self._unread = list(lost)
        self._bad: dict[tuple[str, str, str], dict[str, Any]] = {}
        entries = sum(content.entries for content in contents)
        self._typical = entries / len(contents) if contents else 1.0
        self._total = entries + self._typical * sum(item.start < 0 for item in lost)

    @property
    def lost(self) -> list[Lost]:
        """All losses, in the same order whatever the order in which they were noted."""
        bad = [Lost(dataset, path, one["start"], one["stop"], one["events"], _reason(path, what, one))
               for (dataset, path, what), one in self._bad.items()]  # fmt: skip
        return sorted(
            [*self._unread, *bad], key=lambda item: (item.dataset, item.path, item.start, item.reason)
        )

    def add(self, item: Lost) -> None:
        """Note one more loss."""
        self._unread.append(item)

    def add_bad(self, part: Mapping[str, Any]) -> None:
        """Note the bad events of a part, from its attributes."""
        for one in part["bad"]:
            key = part["dataset"], part["file"], one["what"]
            known = self._bad.setdefault(key, {**one, "events": 0, "first": []})
            self._bad[key] = {
                "start": min(known["start"], one["start"]),
                "stop": max(known["stop"], one["stop"]),
                "events": known["events"] + one["events"],
                "first": sorted(known["first"] + one["first"])[:BAD_NAMED],
            }

    def check(self) -> None:
        """Raise an InputError, and write the ledger, where more is lost than the configuration allows."""
        cost = sum(item.events if item.start >= 0 else self._typical for item in self._unread)
        cost += sum(one["events"] for one in self._bad.values())
        allowed = self._config.store.max_lost_fraction
        if not cost or cost <= allowed * self._total:
            return
        file, lost = self._config.store_path / LEDGER, self.lost
        write_sealed(file, {"lost": [asdict(item) for item in lost]})
        reasons = "\n  ".join(item.reason for item in lost[:5])
        more = f"\n  and {len(lost) - 5} more, all of them in {file}" if len(lost) > 5 else ""
        raise InputError(
            f"input cannot be used (about {cost / self._total:.2%} of all entries so far, store.max_lost_fraction is "
            f"{allowed:.2%}; raise it to continue without them):\n  {reasons}{more}"
        )


def _reason(path: str, what: str, bad: Mapping[str, Any]) -> str:
    """Name the first bad events of a file, and count the others."""
    more = bad["events"] - len(bad["first"])
    named = ", ".join(map(str, bad["first"])) + (f" and {more:,} more" if more else "")
    return f"{path}: {'entry' if bad['events'] == 1 else 'entries'} {named}: {what}"

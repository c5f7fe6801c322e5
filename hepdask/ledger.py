"""What of the input was lost, and whether that is too much."""

from __future__ import annotations

from dataclasses import asdict

from hepdask.artifacts import write_sealed
from hepdask.config import Config
from hepdask.errors import InputError
from hepdask.preparation import Lost
from hepdask.source import FileContent
from hepdask.store.layout import LEDGER


class Ledger:
    """The losses of one run.

    A file that cannot be opened is taken to be as long as the others are on average.

    Parameters
    ----------
    config : Config
        Uses `store`.
    contents : list of FileContent
        The files that could be opened.
    lost : list of Lost
        What is lost already.
    """

    def __init__(self, config: Config, contents: list[FileContent], lost: list[Lost]) -> None:
        self._config = config
        self.lost = lost
        entries = sum(content.entries for content in contents)
        self._typical = entries / len(contents) if contents else 1.0
        self._total = entries + self._typical * sum(item.start < 0 for item in lost)

    def add(self, item: Lost) -> None:
        """Note one more loss, and `check`."""
        self.lost.append(item)
        self.check()

    def check(self) -> None:
        """Raise an InputError, and write the ledger, where more is lost than the configuration allows."""
        cost = sum(item.stop - item.start if item.start >= 0 else self._typical for item in self.lost)
        allowed = self._config.store.max_lost_fraction
        if not self.lost or cost <= allowed * self._total:
            return
        file = self._config.store_path / LEDGER
        write_sealed(file, {"lost": [asdict(item) for item in self.lost]})
        reasons = "\n  ".join(item.reason for item in self.lost[:5])
        more = f"\n  and {len(self.lost) - 5} more, all of them in {file}" if len(self.lost) > 5 else ""
        raise InputError(
            f"input cannot be read (about {cost / self._total:.2%} of all entries, store.max_lost_fraction is "
            f"{allowed:.2%}):\n  {reasons}{more}"
        )

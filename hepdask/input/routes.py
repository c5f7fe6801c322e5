"""The one owner of retries: an address is tried along all its routes, then again after a growing pause."""

from __future__ import annotations

import logging
import os
import random
import time
from collections.abc import Callable, Sequence
from typing import TypeVar
from urllib.parse import urlsplit

from hepdask.config import Input
from hepdask.errors import InputError

logger = logging.getLogger(__name__)

T = TypeVar("T")

_LONGEST_WAIT = 60.0

# the route that worked last in this process: a dead replica costs its time-out once, not for every chunk
_preferred: dict[tuple[str, ...], str] = {}


def read_with_retries(attempt: Callable[[str], T], url: str, reading: Input) -> T:
    """Call `attempt` with one address after another until it gives something.

    Parameters
    ----------
    attempt : callable
        Takes an address. It raises an OSError where the storage fails, an InputError where the content is wrong.
    url : str
        Address of the file, as in the fileset.
    reading : Input
        Routes, number of rounds, pause between them.

    Returns
    -------
    object
        What the first successful attempt gave.

    Raises
    ------
    InputError
        All routes lead to wrong content, or none to anything in any round; each route's reason is given. A subclass
        where that fits all of them.
    """
    wait = reading.retry_wait
    rounds = reading.read_retries + 1
    for round_ in range(rounds):
        if round_:
            time.sleep(min(wait, _LONGEST_WAIT) * random.uniform(0.5, 1.5))
            wait *= 2
        problems: list[tuple[str, Exception]] = []
        for template in _in_order(reading.routes):
            address = address_of(url, template)
            try:
                result = attempt(address)
            except (InputError, OSError) as error:
                problems.append((address, error))
                logger.debug("%s: fails along the route %s: %s", url, template, error)
            else:
                logger.debug("%s: read along the route %s, at %s", url, template, address)
                _preferred[reading.routes] = template
                return result
        if all(isinstance(error, InputError) for _, error in problems):
            break  # wrong content stays wrong
    kinds = {type(error) if isinstance(error, InputError) else InputError for _, error in problems}
    raise (kinds.pop() if len(kinds) == 1 else InputError)(_explain(url, problems, round_ + 1))


def address_of(url: str, template: str) -> str:
    """Fill in a route: ``{url}`` is the whole address, ``{path}`` the absolute path in it."""
    path = "/" + urlsplit(url).path.lstrip("/") if "://" in url else os.path.abspath(url)
    return template.replace("{url}", url).replace("{path}", path)


def _in_order(routes: tuple[str, ...]) -> Sequence[str]:
    return sorted(routes, key=lambda template: template != _preferred.get(routes))


def _explain(url: str, problems: list[tuple[str, Exception]], rounds: int) -> str:
    reasons = [
        str(error)
        if isinstance(error, InputError)
        else f"{address}: not readable after {rounds} attempts: {type(error).__name__}: {' '.join(str(error).split())}"
        for address, error in problems
    ]
    if len(reasons) == 1:
        return reasons[0]
    return f"{url}: no route reaches it:\n    " + "\n    ".join(reasons)

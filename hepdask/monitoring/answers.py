"""Questions to a scheduler, with a bound on the wait: one that is stopped, or cannot be reached, answers nobody."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from distributed import Client

from hepdask.errors import ClusterError

ANSWER = 60.0  # seconds; an answer takes milliseconds where nothing is wrong


def answer(client: Client, question: Callable[[], Any], seconds: float = ANSWER) -> Any:
    """Give what a method of a client gives.

    Parameters
    ----------
    client : distributed.Client
        A synchronous client.
    question : callable
        Calls the method; runs on the client's event loop.
    seconds : float
        Longest wait [s].

    Raises
    ------
    ClusterError
        There was no answer.
    """

    async def ask() -> Any:
        return await question()

    try:
        return client.sync(ask, callback_timeout=seconds)
    except TimeoutError:
        raise ClusterError(
            f"the scheduler did not answer within {seconds:g} s: check that its process is running and its machine "
            "can be reached"
        ) from None

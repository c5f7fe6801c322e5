"""Waiting for what comes true in its own time, never without a bound."""

import time


def until(condition, seconds, what="what is waited for"):
    """Wait until something is true, for at most so long; give it."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"{what}: not within {seconds} s"
        time.sleep(0.02)
    return found

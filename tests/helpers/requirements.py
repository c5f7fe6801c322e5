"""What a test needs and a machine may lack."""

from __future__ import annotations

import os

import pytest


def require(available, what):
    """Skip where something cannot be had; in CI that is a failure."""
    if available:
        return
    if os.environ.get("CI") == "true":
        pytest.fail(f"{what}: required in CI")
    pytest.skip(what)


def has_horovod():
    try:
        import horovod  # noqa: F401
    except ImportError:
        return False
    return True

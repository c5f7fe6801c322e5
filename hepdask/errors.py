"""The errors a user of hepdask can meet, each with the exit code its command returns."""

from __future__ import annotations


class HepdaskError(Exception):
    """Something a person can fix: the message says what was wrong, where, and what to do.

    Attributes
    ----------
    exit_code : int
        What the command line returns: 1 for a failure, 2 for wrong usage or configuration.
    """

    exit_code = 1


class ConfigError(HepdaskError):
    """The configuration is wrong; nothing was started."""

    exit_code = 2


class InputError(HepdaskError):
    """An input file cannot be used: missing, unreadable, or not of the expected layout."""


class StoreError(HepdaskError):
    """A store is incomplete, damaged, or was made with another configuration."""


class OutputError(HepdaskError, OSError):
    """Something cannot be written: no space, no permission, something else in the way."""


class ClusterError(HepdaskError):
    """A cluster cannot be started or reached."""


class MissingDependency(HepdaskError):
    """A package of an optional extra is not installed; the message names the extra."""


class TrainingError(HepdaskError):
    """Training cannot start, or had to stop."""

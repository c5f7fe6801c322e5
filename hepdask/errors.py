"""The errors a user of hepdask can meet, each with the exit code its command returns.

All are a `HepdaskError`, and most are also the builtin that Python programmers expect in such a case::

    HepdaskError
    ├── ConfigError              ValueError
    ├── InputError
    │   ├── InputNotFound        FileNotFoundError
    │   └── FieldNotFound        KeyError
    ├── StoreError
    │   └── StoreNotFound        FileNotFoundError
    ├── OutputError              OSError
    ├── ClusterError             RuntimeError
    ├── TrainingError            RuntimeError
    └── MissingDependency        ImportError
        └── KernelMissing        (hepdask.kernels)

Those of `hepdask.distributed` stand beside them, below `hepdask.distributed.DistributedError`.

Who catches a builtin around code that can raise one of these catches ours too: catch `HepdaskError` before it.
"""

from __future__ import annotations


class HepdaskError(Exception):
    """Something a person can fix: the message says what was wrong, where, and what to do.

    Attributes
    ----------
    exit_code : int
        What the command line returns: 1 for a failure, 2 for wrong usage or configuration.
    """

    exit_code = 1

    def __str__(self) -> str:
        return Exception.__str__(self)  # a KeyError would put its message in quotation marks


class ConfigError(HepdaskError, ValueError):
    """The configuration is wrong; nothing was started."""

    exit_code = 2


class InputError(HepdaskError):
    """An input file cannot be used: missing, unreadable, or not of the expected layout."""


class InputNotFound(InputError, FileNotFoundError):
    """There is no such input file or model, or no file that a pattern matches."""


class FieldNotFound(InputError, KeyError):
    """A file has no such tree, or a tree no such branch: collections and their fields are looked for by these names."""


class StoreError(HepdaskError):
    """A store is incomplete, damaged, or was made with another configuration."""


class StoreNotFound(StoreError, FileNotFoundError):
    """There is no store."""


class OutputError(HepdaskError, OSError):
    """Something cannot be written: no space, no permission, something else in the way."""


class ClusterError(HepdaskError, RuntimeError):
    """A cluster cannot be started or reached."""


class MissingDependency(HepdaskError, ImportError):
    """A package of an optional extra is not installed; the message names the extra."""


class TrainingError(HepdaskError, RuntimeError):
    """Training cannot start, or had to stop."""

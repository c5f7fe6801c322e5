"""The classifiers, one file each: what they take, and how they are built.

Importing this package does not import TensorFlow; building a model does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hepdask.config import HLF, Inclusive, Models
from hepdask.models import hlf, inclusive

if TYPE_CHECKING:
    import keras

#: What each model takes, by name.
INPUTS = {"hlf": hlf.INPUTS, "inclusive": inclusive.INPUTS}


def settings(name: str, models: Models) -> HLF | Inclusive:
    """Pick the settings of a model."""
    return getattr(models, name)


def build(name: str, models: Models, classes: int) -> keras.Model:
    """Build an untrained Keras model.

    Parameters
    ----------
    name : str
        ``"hlf"`` or ``"inclusive"``.
    models : Models
        Settings of all models.
    classes : int
        Length of the output.

    Returns
    -------
    keras.Model
        From a dict of the arrays in ``INPUTS[name]`` to class probabilities (n, classes).
    """
    if name == "hlf":
        return hlf.build(models.hlf, classes)
    return inclusive.build(models.inclusive, classes)

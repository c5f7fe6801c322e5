"""What a search may try: the keys of a model's section, and the values each may take."""

from __future__ import annotations

import difflib
import itertools
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from hepdask import models
from hepdask.config import Config, Range
from hepdask.config.validation import Named, validate
from hepdask.errors import ConfigError


def check(config: Config) -> None:
    """Refuse a space in which there is nothing to try, or something that cannot be.

    Raises
    ------
    ConfigError
        There is no parameter, the model has no such key, a choice is not allowed for it, or a grid has no end.
    """
    tuning = config.tuning
    if not tuning.parameters:
        raise ConfigError(
            "tuning.parameters is empty: give keys of the model and the values to try, for example "
            "{learning_rate: {low: 0.0001, high: 0.01, log: true}, batch_size: [64, 128]}"
        )
    known = list(type(models.settings(tuning.model, config.models)).model_fields)
    for key, values in tuning.parameters.items():
        where = f"tuning.parameters.{key}"
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known keys: {', '.join(known)}"
            raise ConfigError(f"{where}: models.{tuning.model} has no such key; {hint}")
        if values == []:
            raise ConfigError(f"{where}: the list of choices is empty")
        for value in [values.low, values.high] if isinstance(values, Range) else values:
            try:
                applied(config, tuning.model, {key: value})
            except ConfigError as error:
                raise ConfigError(f"{where}: {value} cannot be tried: {error}") from None
    if tuning.sampler == "grid":
        grid(tuning.parameters)
    if tuning.prune_after and tuning.prune_after >= tuning.folds:
        raise ConfigError(
            f"tuning.prune_after is {tuning.prune_after}, and there are only {tuning.folds} folds"
        )


def grid(parameters: Mapping[str, list[Any] | Range]) -> list[dict[str, Any]]:
    """List every combination, in the order of the document.

    Raises
    ------
    ConfigError
        A range has no step.
    """
    values = []
    for key, choices in parameters.items():
        if isinstance(choices, Range):
            whole = isinstance(choices.low, int) and isinstance(choices.high, int)
            step = choices.step or (1 if whole and not choices.log else None)
            if step is None:
                raise ConfigError(f"tuning.parameters.{key}: a grid needs choices, or a range with a step")
            count = int((choices.high - choices.low) / step * (1 + 1e-12)) + 1
            choices = [choices.low + step * number for number in range(count)]
            choices = [float(np.round(value, 12)) if isinstance(value, float) else value for value in choices]
        values.append([(key, choice) for choice in choices])
    return [dict(combination) for combination in itertools.product(*values)]


def applied(config: Config, model: str, parameters: Mapping[str, Any]) -> Config:
    """Give the configuration with other settings of one model.

    Raises
    ------
    ConfigError
        A value is not allowed.
    """
    section = models.settings(model, config.models)
    document = section.model_dump(mode="json") | json.loads(json.dumps(dict(parameters)))
    changed = validate(type(section), document, Named(f"models.{model}"))
    return config.model_copy(update={"models": config.models.model_copy(update={model: changed})})

"""Every key of the configuration with its default, as the documentation shows it."""

from __future__ import annotations

import json
from collections.abc import Iterator

from pydantic import BaseModel

from hepdask.config.run import Config
from hepdask.config.validation import model_of


def reference() -> str:
    """Describe every key with its default, as Markdown."""
    lines = ["| key | default | meaning |", "| --- | --- | --- |"]
    lines += [f"| `{key}` | {default} | {text} |" for key, default, text in _keys(Config, "")]
    return "\n".join(lines)


def _keys(model: type[BaseModel], prefix: str) -> Iterator[tuple[str, str, str]]:
    for name, field in model.model_fields.items():
        key, text = prefix + name, (field.description or "").replace("|", "\\|")
        nested = model_of(field.annotation)
        if nested is not None:
            is_mapping = field.annotation is not nested
            if is_mapping:
                yield key, "`{}`", text
            yield from _keys(nested, f"{key}.NAME." if is_mapping else f"{key}.")
        elif field.is_required():
            yield key, "required", text
        else:
            default = field.get_default(call_default_factory=True)
            shown = json.dumps(list(default) if isinstance(default, tuple) else default)
            yield key, f"`{shown}`", text

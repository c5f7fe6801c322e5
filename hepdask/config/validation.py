"""A document is checked against a model, and what is wrong with it is said with its place and in a person's words."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from types import UnionType
from typing import Annotated, Any, Protocol, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from hepdask.config.document import Document, reading
from hepdask.errors import ConfigError

T = TypeVar("T", bound=BaseModel)
Keys = tuple[Any, ...]

#: What pydantic says of a value that has another type than the one that is due.
_TYPES = (
    "string_type", "literal_error", "int_type", "float_type", "bool_type", "bool_parsing", "int_parsing",
    "float_parsing", "model_type", "dict_type", "list_type", "tuple_type", "int_from_float", "text",
)  # fmt: skip


class Origin(Protocol):
    """Where values come from."""

    def at(self, keys: Sequence[Any]) -> str:
        """Say where a value stands."""

    def source(self, keys: Sequence[Any]) -> tuple[Document, Sequence[Any]] | None:
        """Give the document that a value was read from, and its keys there; None where it is from elsewhere."""


class Named:
    """Values that do not stand in a document."""

    def __init__(self, name: str) -> None:
        self._name = name

    def at(self, keys: Sequence[Any]) -> str:
        """Say where a value stands."""
        return self._name

    def source(self, keys: Sequence[Any]) -> None:
        """Give nothing: there is no document."""


class Layers:
    """A document, and what was put in or on top of it later."""

    def __init__(self, base: Origin) -> None:
        self._layers: list[tuple[Keys, Origin]] = [((), base)]

    def add(self, keys: Keys, origin: Origin) -> None:
        """Say that the value at `keys`, and all below it, is from elsewhere."""
        self._layers.append((keys, origin))

    def at(self, keys: Sequence[Any]) -> str:
        """Say where a value stands."""
        below, origin = self._owner(keys)
        return origin.at(below)

    def source(self, keys: Sequence[Any]) -> tuple[Document, Sequence[Any]] | None:
        """Give the document that a value was read from, and its keys there."""
        below, origin = self._owner(keys)
        return origin.source(below)

    def _owner(self, keys: Sequence[Any]) -> tuple[Sequence[Any], Origin]:
        return next(
            (keys[len(above) :], origin)
            for above, origin in reversed(self._layers)
            if tuple(keys[: len(above)]) == above
        )


class Read:
    """Values of one document."""

    def __init__(self, document: Document) -> None:
        self._document = document

    def at(self, keys: Sequence[Any]) -> str:
        """Say where a value stands."""
        return self._document.at(keys)

    def source(self, keys: Sequence[Any]) -> tuple[Document, Sequence[Any]]:
        """Give the document and the keys."""
        return self._document, keys


def validate(model: type[T], value: Any, origin: Origin) -> T:
    """Check a value against a model.

    A validator of the model may begin what it says with the key that it is about, ``port_range goes from …``; the
    place is then that of the key.

    Raises
    ------
    ConfigError
        What is wrong, line by line: each with its place and its path in the document.
    """
    try:
        made = model.model_validate(value)
    except ValidationError as error:
        told: dict[str, list[str]] = {}
        problems = error.errors()
        for problem in problems:
            # nothing is left of a list whose items are wrong
            if problem["type"] == "too_short" and _has_others_below(problem, problems):
                continue
            where, what = _explain(model, value, problem, origin)
            if what not in told.setdefault(where, []):
                told[where].append(what)
        lines = [where + "; or: ".join(what) for where, what in told.items()]
        raise ConfigError("\n  ".join(lines)) from None
    lines = [_located(origin, keys, what) for keys, what in _numbers_from_truth(made, value, ())]
    if lines:
        raise ConfigError("\n  ".join(lines))
    return made


def _has_others_below(problem: Any, problems: Sequence[Any]) -> bool:
    size = len(problem["loc"])
    return any(len(other["loc"]) > size and other["loc"][:size] == problem["loc"] for other in problems)


def nearest(word: str, known: Sequence[str]) -> str:
    """Give a hint to the known key that is like a word, or all that there are."""
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"did you mean {near[0]}?" if near else f"known keys: {', '.join(known)}"


def model_of(annotation: Any) -> type[BaseModel] | None:
    """Find the model in a type."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for arg in get_args(annotation) if (found := model_of(arg))), None)


def find_key(model: type[BaseModel], words: Sequence[str], there: Any) -> Keys:
    """Tell which keys are meant by the words between the dots of ``--set``.

    Below a mapping whose keys are the user's, a key may hold dots: it ends where a key of the model below follows, and
    otherwise takes the rest.

    Parameters
    ----------
    model : type
        The model of the document.
    words : sequence of str
        What stands between the dots.
    there : object
        What the document has so far.

    Raises
    ------
    ConfigError
        There is no such key; the nearest one is named.
    """
    word, *rest = words
    names = fields_of(model)
    if word not in names:
        raise ConfigError(f"unknown key {word}; {_instead(model, word)}")
    below = there.get(word) if isinstance(there, Mapping) else None
    return (word, *_find_below(names[word], rest, below)) if rest else (word,)


def _find_below(annotation: Any, words: Sequence[str], there: Any) -> Keys:
    keyed = _mapping_in(annotation)
    if keyed is None:
        inner = model_of(annotation)
        if inner is None:
            raise ConfigError(f"it is a plain value with no keys below it; leave out .{'.'.join(words)}")
        return find_key(inner, words, there)
    inner = model_of(keyed)
    known = {str(key): key for key in there} if isinstance(there, Mapping) else {}
    for length in range(len(words), 0, -1):
        name, rest = ".".join(words[:length]), words[length:]
        if name in known and (not rest or inner or _mapping_in(keyed)):
            key = known[name]
            return (key, *_find_below(keyed, rest, there[key])) if rest else (key,)
    if inner is None and _mapping_in(keyed) is not None and len(words) > 1:
        return (words[0], ".".join(words[1:]))
    for length in range(1, len(words)):
        if inner and words[length] in fields_of(inner):
            return (".".join(words[:length]), *find_key(inner, words[length:], None))
    return (".".join(words),)


def _mapping_in(annotation: Any) -> Any:
    """Give the type of the values of the mapping in a type; None where there is no mapping."""
    origin = get_origin(annotation)
    if origin is dict:
        return get_args(annotation)[1]
    if origin in (Union, UnionType, Annotated):
        return next((found for arg in get_args(annotation) if (found := _mapping_in(arg)) is not None), None)
    return None


def fields_of(model: type[BaseModel]) -> dict[str, Any]:
    """Name the keys of a model, and the type of each."""
    return {name: field.annotation for name, field in model.model_fields.items()}


def _located(origin: Origin, keys: Sequence[Any], what: str) -> str:
    return _prefix(origin.at(keys), keys) + what


def _prefix(place: str, keys: Sequence[Any]) -> str:
    path = ".".join(map(str, keys))
    return f"{place}: {path}: " if path and place != f"--set {path}" else f"{place}: "


def _explain(model: type[BaseModel], value: Any, problem: Any, origin: Origin) -> tuple[str, str]:
    """Give place and path of a problem, and what it is."""
    keys, is_key = _keys_in(value, problem)
    if problem["type"] == "invalid_key" and (not keys or keys[-1] != problem["input"]):
        keys = (*keys, problem["input"])  # pydantic gives no place to a number that is too large for it
    message = problem["msg"].removeprefix("Value error, ")
    named = (*keys, *_keys_named(_at(value, keys), message))
    place = origin.at(named)
    keys = named if problem["type"] == "text" else keys
    if problem["type"] in ("extra_forbidden", "invalid_key"):
        message = f"unknown key; {_instead(_model_at(model, keys[:-1]), str(keys[-1]))}"
    found = origin.source(keys)
    text = found[0].written_key(found[1]) if found and is_key and problem["type"] == "string_type" else None
    if found and text is not None:
        told = reading(text, keys[-1]).replace("YAML reads", "YAML reads the key")
        message = f"{told}; {found[0].quoting(text)}"
    elif found and not is_key and problem["type"] in _TYPES:
        message = _with_reading(message, problem, *found, _at(value, keys))
    return _prefix(place, keys), message


def _with_reading(message: str, problem: Any, document: Document, keys: Sequence[Any], value: Any) -> str:
    """Say what YAML made of a word, where that has another type than the one that is due."""
    text = document.written(keys)
    if text is None or isinstance(value, str):
        return message
    told = reading(text, value)
    if value is None:
        return f"{told}; give a value, or leave the key out"
    if problem["type"] in ("string_type", "literal_error", "text"):
        return f"{told}; {document.quoting(text)}"
    return f"{message}; {told}"


def _keys_in(value: Any, problem: Any) -> tuple[Keys, bool]:
    """Give the keys of a problem in the document, without what pydantic calls the members of a union."""
    keys: list[Any] = []
    loc = problem["loc"]
    for place, part in enumerate(loc):
        if part == "[key]" and place == len(loc) - 1:
            return tuple(keys), True
        there = (isinstance(value, Mapping) and part in value) or (
            isinstance(value, list | tuple) and isinstance(part, int) and part < len(value)
        )
        if there:
            value = value[part]
        elif place < len(loc) - 1 or problem["type"] != "missing":
            continue
        keys.append(part)
    return tuple(keys), False


def _keys_named(value: Any, message: str) -> Keys:
    """Find the keys with which a message begins."""
    keys: list[Any] = []
    while isinstance(value, Mapping):
        matching = [key for key in map(str, value) if _begins_with(message, key)]
        if not matching or (key := max(matching, key=len)) not in value:
            break
        keys.append(key)
        value, message = value[key], message[len(key) + 1 :]
    return tuple(keys)


def _begins_with(message: str, key: str) -> bool:
    return message.startswith(key) and message[len(key) : len(key) + 1] in (".", ":", " ", "")


def _at(value: Any, keys: Sequence[Any]) -> Any:
    for key in keys:
        try:
            value = value[key]
        except (KeyError, IndexError, TypeError):
            return None
    return value


def _model_at(model: type[BaseModel], keys: Sequence[Any]) -> type[BaseModel] | None:
    current: type[BaseModel] | None = model
    for key in keys:
        if current is not None and key in fields_of(current):
            current = model_of(fields_of(current)[key])
    return current


def _instead(model: type[BaseModel] | None, word: str) -> str:
    """Say which key was meant by one that is not there: the new one of an old one, or the nearest."""
    if new := getattr(model, "moved", {}).get(word):
        return f"it is now called {new}"
    return nearest(word, list(fields_of(model)) if model else [])


def _numbers_from_truth(made: Any, value: Any, keys: Keys) -> Iterator[tuple[Keys, str]]:
    """Find numbers that were made of `true` and `false`, and keys that became one."""
    if isinstance(made, BaseModel) and isinstance(value, Mapping):
        for key in type(made).model_fields:
            if key in value:
                yield from _numbers_from_truth(getattr(made, key), value[key], (*keys, key))
    elif isinstance(made, dict) and isinstance(value, Mapping):
        if len(made) != len(value):
            yield keys, "two of its keys mean the same; remove one of them"
            return
        for below, key in zip(made.values(), value, strict=False):
            yield from _numbers_from_truth(below, value[key], (*keys, key))
    elif isinstance(made, list | tuple) and isinstance(value, list | tuple):
        for place, (below, item) in enumerate(zip(made, value, strict=False)):
            yield from _numbers_from_truth(below, item, (*keys, place))
    elif isinstance(value, bool) and isinstance(made, int | float) and not isinstance(made, bool):
        yield keys, f"a number is expected, this is {str(value).lower()}"

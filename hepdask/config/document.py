"""YAML and JSON documents, read strictly: nothing stands twice or is bent, and everything keeps its line.

YAML 1.1 makes numbers, truth values and dates of words that a person meant otherwise (``no``, ``0700``, ``1:30:00``,
``2024-01-01``), and its readers keep the last of two equal keys. Here the second is refused, and of the first what has
two readings; the rest keeps the text as it was written, for those who want text and find a number.
"""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from hepdask.errors import ConfigError

_LONGEST = 1 << 26  # bytes
_DEEPEST = 64
_MOST_REPEATED = 1 << 20  # values that stand in a document only because of aliases

_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_TRUTH = re.compile(r"(?:yes|Yes|YES|true|True|TRUE|on|On|ON)|no|No|NO|false|False|FALSE|off|Off|OFF")
_NOTHING = re.compile(r"~|null|Null|NULL|")
_WHOLE = re.compile(r"[-+]?(?:0|[1-9][0-9_]*|0x[0-9a-fA-F_]+|0b[01_]+)")
_NUMBER = re.compile(
    r"[-+]?(?:\.[0-9][0-9_]*|[0-9][0-9_]*\.[0-9_]*)(?:[eE][-+]?[0-9]+)?|[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+"
)
_NO_NUMBER = re.compile(r"([-+]?)\.(?:(inf|Inf|INF)|nan|NaN|NAN)")
_OCTAL = re.compile(r"[-+]?0[0-7_]*[0-7]")
_SEXAGESIMAL = re.compile(r"[-+]?[0-9][0-9_]*(?::[0-5]?[0-9])+(?:\.[0-9_]*)?")
_DATE = re.compile(
    r"\d{4}-\d\d?-\d\d?(?:(?:[Tt]|[ \t]+)\d\d?:\d\d:\d\d(?:\.\d*)?(?:[ \t]*(?:Z|[-+]\d\d?(?::\d\d)?))?)?"
)
# JSON writes what lies beyond 16 bits in two halves, of which YAML knows nothing
_HALVES = re.compile(r"(?<!\\)((?:\\\\)*)\\u([dD][89abAB][0-9a-fA-F]{2})\\u([dD][c-fC-F][0-9a-fA-F]{2})")


@dataclass(slots=True)
class _Node:
    """A value, where it stands, and what stands in it."""

    line: int
    value: Any
    text: str | None = None  # as written, where no quotation marks are around it
    children: dict[Hashable, _Node] | list[_Node] | None = None
    keys: dict[Hashable, tuple[int, str]] = field(default_factory=dict)
    size: int = 1


@dataclass(frozen=True)
class Document:
    """What was read, and where each value of it stands.

    Attributes
    ----------
    name : str
        The file, or what else it was read from.
    value : dict, list, str, int, float, bool or None
        What it says.
    """

    name: str
    value: Any
    _root: _Node
    _has_lines: bool = True

    def at(self, keys: Sequence[Any]) -> str:
        """Say where a value stands, or where that should stand which is not there: ``FILE, line N``."""
        node, line = self._root, self._root.line
        for key in keys:
            below = _below(node, key)
            if below is None:
                break
            line = node.keys[key][0] if key in node.keys else below.line
            node = below
        return f"{self.name}, line {line}" if self._has_lines else self.name

    def written(self, keys: Sequence[Any]) -> str | None:
        """Give a value as it is written without quotation marks; None where it has them, is none, or is not there."""
        node: _Node | None = self._root
        for key in keys:
            node = _below(node, key) if node else None
        return node.text if node else None

    def written_key(self, keys: Sequence[Any]) -> str | None:
        """Give a key as it is written; None where it is not there."""
        *above, last = keys
        node: _Node | None = self._root
        for key in above:
            node = _below(node, key) if node else None
        return node.keys[last][1] if node and last in node.keys else None

    def quoting(self, text: str) -> str:
        """Say how to have text where YAML reads something else."""
        if self._has_lines:
            return "put it in quotation marks"
        return f"put it in quotation marks: {self.name}='\"{text}\"'"


def _below(node: _Node, key: Any) -> _Node | None:
    if isinstance(node.children, dict):
        return node.children.get(key) if isinstance(key, Hashable) else None
    if isinstance(node.children, list) and isinstance(key, int) and 0 <= key < len(node.children):
        return node.children[key]
    return None


def read_document(path: Path) -> Document:
    """Read a mapping from a YAML or JSON file, which may be compressed (``.gz``).

    Raises
    ------
    ConfigError
        It cannot be read, is no mapping, is not valid, or holds what has two readings; file and line are named.
    """
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
            content = file.read(_LONGEST + 1)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ConfigError(f"{path}: cannot be read: damaged gzip file: {error}") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError as error:  # a name with a null character
        raise ConfigError(f"{str(path)!r}: cannot be read: {error}") from None
    if len(content) > _LONGEST:
        raise ConfigError(
            f"{path}: longer than {_LONGEST >> 20} MiB, too long for a configuration; is it the right file?"
        )
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{path}, line {line}: not valid YAML: not text in UTF-8") from None
    document = Document(str(path), *_read(text, str(path)))
    if not isinstance(document.value, dict):
        found = "empty" if document.value is None else _kind(document.value)
        raise ConfigError(f"{document.at(())}: a configuration is a mapping of sections, this is {found}")
    return document


def read_value(text: str, name: str) -> Document:
    """Read a value from the command line, by the rules of documents.

    Parameters
    ----------
    text : str
        YAML; most often one word or number.
    name : str
        Where it was given, for errors: ``--set KEY``.

    Raises
    ------
    ConfigError
        It is not valid, or has two readings.
    """
    return Document(name, *_read(text, name, has_lines=False), _has_lines=False)


def reading(text: str, value: Any) -> str:
    """Say what YAML makes of a word: ``YAML reads `no` as false``."""
    if value is None:
        return f"YAML reads {f'`{text}`' if text else 'an empty value'} as nothing"
    return f"YAML reads `{text}` as {_kind(value)}"


def _kind(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return f"the number {value}"
    return "a list" if isinstance(value, list) else "a mapping" if isinstance(value, dict) else "text"


def _read(text: str, name: str, has_lines: bool = True) -> tuple[Any, _Node]:
    text = _HALVES.sub(lambda found: found[1] + _whole_character(found[2], found[3]), text)
    try:
        root = _Composer(text, name, has_lines).root()
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        place = f"{name}, line {line}" if has_lines else name
        raise ConfigError(
            f"{place}: not valid YAML: a character that is not allowed ({error.reason})"
        ) from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{name}, line {mark.line + 1}" if mark and has_lines else name
        told = ", ".join(part for part in (error.context, error.problem) if part)
        raise ConfigError(f"{place}: not valid YAML: {told}") from None
    return root.value, root


def _whole_character(high: str, low: str) -> str:
    return chr(0x10000 + ((int(high, 16) - 0xD800) << 10) + int(low, 16) - 0xDC00)


class _Composer:
    """Makes nodes of what the parser sees, one by one, so that no document can take long or go deep."""

    def __init__(self, text: str, name: str, has_lines: bool) -> None:
        self._events: Iterator[Any] = yaml.parse(text, Loader=_Loader)
        self._name, self._has_lines = name, has_lines
        self._anchors: dict[str, _Node | None] = {}
        self._repeated = 0

    def root(self) -> _Node:
        node: _Node | None = None
        for event in self._events:
            if isinstance(event, yaml.DocumentStartEvent):
                if node is not None:
                    raise self._error(event, (), "a second document starts here; only one is read")
                node = self._node(next(self._events), ())
        return node or _Node(1, None, "")

    def _node(self, event: Any, keys: tuple[Any, ...]) -> _Node:
        if isinstance(event, yaml.AliasEvent):
            return self._alias(event, keys)
        if len(keys) > _DEEPEST:
            raise self._error(event, keys[:3], f"deeper than {_DEEPEST} levels; no configuration is")
        if event.tag not in (None, "!", "tag:yaml.org,2002:str"):
            tag = event.tag.replace("tag:yaml.org,2002:", "!!")
            raise self._error(event, keys, f"`{tag}` is not known; write plain values, without tags")
        if event.anchor:
            self._anchors[event.anchor] = None
        if isinstance(event, yaml.ScalarEvent):
            node = self._scalar(event, keys)
        elif isinstance(event, yaml.SequenceStartEvent):
            node = self._list(event, keys)
        else:
            node = self._mapping(event, keys)
        if event.anchor:
            self._anchors[event.anchor] = node
        return node

    def _alias(self, event: Any, keys: tuple[Any, ...]) -> _Node:
        if event.anchor not in self._anchors:
            raise self._error(
                event, keys, f"`*{event.anchor}` is not defined: there is no `&{event.anchor}` before"
            )
        node = self._anchors[event.anchor]
        if node is None:
            raise self._error(event, keys, f"`*{event.anchor}` contains itself")
        self._repeated += node.size
        if self._repeated > _MOST_REPEATED:
            raise self._error(
                event, keys, f"aliases such as `*{event.anchor}` make the document endlessly long"
            )
        return node

    def _scalar(self, event: Any, keys: tuple[Any, ...]) -> _Node:
        line, text = event.start_mark.line + 1, event.value
        if event.style or event.tag:
            return _Node(line, text)
        if bent := _bent(text):
            raise self._error(event, keys, bent)
        try:
            return _Node(line, _plain(text), text)
        except ValueError:
            raise self._error(event, keys, f"a number of {len(text)} digits is too long") from None

    def _list(self, event: Any, keys: tuple[Any, ...]) -> _Node:
        items: list[_Node] = []
        while not isinstance(following := next(self._events), yaml.SequenceEndEvent):
            items.append(self._node(following, (*keys, len(items))))
        size = 1 + sum(item.size for item in items)
        return _Node(event.start_mark.line + 1, [item.value for item in items], None, items, size=size)

    def _mapping(self, event: Any, keys: tuple[Any, ...]) -> _Node:
        children: dict[Hashable, _Node] = {}
        lines: dict[Hashable, tuple[int, str]] = {}
        first: dict[str, int] = {}
        merged: _Node | None = None
        while not isinstance(following := next(self._events), yaml.MappingEndEvent):
            line = following.start_mark.line + 1
            if isinstance(following, yaml.ScalarEvent) and following.value == "<<" and not following.style:
                if merged:
                    raise self._error(following, keys, "`<<` is repeated; write <<: [*one, *other]")
                merged = self._node(next(self._events), (*keys, "<<"))
                if not all(isinstance(one.children, dict) for one in _merged(merged)):
                    raise self._error(following, keys, "`<<` takes a mapping, or a list of mappings")
                continue
            key = self._key(following, keys)
            if str(key) in first:
                raise self._error(following, (*keys, key), self._twice(first[str(key)], line))
            first[str(key)] = line
            lines[key] = line, str(getattr(following, "value", key))
            children[key] = self._node(next(self._events), (*keys, key))
        for one in _merged(merged) if merged else ():
            assert isinstance(one.children, dict)
            for key, child in one.children.items():
                if key not in children:
                    children[key], lines[key] = child, one.keys[key]
        value = {key: child.value for key, child in children.items()}
        size = 1 + sum(child.size for child in children.values())
        return _Node(event.start_mark.line + 1, value, None, children, lines, size)

    def _key(self, event: Any, keys: tuple[Any, ...]) -> Hashable:
        node = self._node(event, (*keys, "…"))
        if isinstance(node.value, str) or (isinstance(node.value, int) and not isinstance(node.value, bool)):
            return node.value
        if node.children is not None:
            raise self._error(event, keys, f"a key is one word, this is {_kind(node.value)}")
        told = reading(node.text or "", node.value).replace("YAML reads", "YAML reads the key")
        raise self._error(event, keys, f"{told}; put it in quotation marks")

    def _twice(self, first: int, second: int) -> str:
        lines = f", in lines {first} and {second}" if self._has_lines else ""
        return f"this key is repeated{lines}; the first would be lost"

    def _error(self, event: Any, keys: Sequence[Any], what: str) -> ConfigError:
        place = f"{self._name}, line {event.start_mark.line + 1}" if self._has_lines else self._name
        shown = ".".join(map(str, keys))
        return ConfigError(f"{place}: {shown}: {what}" if shown else f"{place}: {what}")


def _merged(node: _Node) -> list[_Node]:
    return node.children if isinstance(node.children, list) else [node]


def _plain(text: str) -> Any:
    """Read a word without quotation marks; a ValueError where it is a number beyond all bounds."""
    if _NOTHING.fullmatch(text):
        return None
    if _TRUTH.fullmatch(text):
        return text.lower() in ("yes", "true", "on")
    if _WHOLE.fullmatch(text):
        base = 16 if "x" in text else 2 if "0b" in text else 10
        return int(text.replace("_", ""), base)
    if _NUMBER.fullmatch(text):
        return float(text.replace("_", ""))
    if found := _NO_NUMBER.fullmatch(text):
        return float(found[1] + "inf") if found[2] else float("nan")
    return text


def _bent(text: str) -> str | None:
    """Say of a word without quotation marks what it is read as, if that is hardly what was meant."""
    if _DATE.fullmatch(text):
        return f"YAML reads `{text}` as a date; put it in quotation marks"
    if _OCTAL.fullmatch(text):
        number = int(text.replace("_", ""), 8)
        plain = text.replace("_", "").lstrip("-+0") or "0"
        return (
            f"YAML reads `{text}` as the number {number} (octal); put it in quotation marks, or write the number "
            f"that is meant: {number} or {plain}"
        )
    if _SEXAGESIMAL.fullmatch(text) and text.lstrip("-+")[0] != "0":
        number = 0
        for part in text.lstrip("-+").replace("_", "").partition(".")[0].split(":"):
            number = 60 * number + int(part)
        return (
            f"YAML reads `{text}` as the number {number} (sexagesimal); put it in quotation marks, or write the "
            "number"
        )
    return None

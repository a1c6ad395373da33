"""Check what was read from a YAML file against a table of its keys, and say precisely what is wrong."""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from .errors import OvsError

_MOST_LEVELS = 100
_MOST_NODES = 1_000_000
_SHORT = reprlib.Repr()
_SHORT.maxlevel = 3
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 60

_BaseLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(frozen=True)
class Field:
    """One key of a mapping: what its value must be, in words and as a test."""

    expected: str
    accepts: Callable[[Any], bool]
    required: bool = False

    def needed(self) -> Field:
        """Return the same field, required."""
        return Field(self.expected, self.accepts, required=True)


def is_number(value: Any) -> bool:
    """Tell whether `value` is an int or a float; True and False are not numbers."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def is_texts(value: Any) -> bool:
    """Tell whether `value` is a list of strings, each with something in it."""
    return isinstance(value, list) and all(isinstance(item, str) and item for item in value)


def is_sha256(value: Any) -> bool:
    """Tell whether `value` is a SHA-256 in lower-case hexadecimal."""
    return isinstance(value, str) and len(value) == 64 and set(value) <= set("0123456789abcdef")


def one_of(*values: str) -> Field:
    """Return a field that takes one of `values`."""
    return Field("one of " + ", ".join(values), lambda value: isinstance(value, str) and value in values)


TEXT = Field("a text", lambda value: isinstance(value, str) and bool(value.strip()))
TEXTS = Field("a list of texts", is_texts)
FLAG = Field("true or false", lambda value: isinstance(value, bool))
NUMBER = Field("a number", is_number)
POSITIVE = Field("a number above 0", lambda value: is_number(value) and value > 0)
COUNT = Field("a whole number", lambda value: isinstance(value, int) and is_number(value) and value >= 0)
MAPPING = Field("a mapping", lambda value: isinstance(value, dict) and all(isinstance(k, str) for k in value))
SHA256 = Field("64 lower-case hexadecimal digits", is_sha256)
ANYTHING = Field("anything", lambda value: True)


def nearest(word: str, words: Iterable[str]) -> str:
    """Return `; did you mean 'x'?` for the word of `words` nearest to `word`, or nothing."""
    by_lower = {known.lower(): known for known in words}
    close = difflib.get_close_matches(word.lower(), by_lower, n=1, cutoff=0.6)
    return f"; did you mean '{by_lower[close[0]]}'?" if close else ""


def check(data: Any, fields: Mapping[str, Field], where: str, error: type[OvsError]) -> None:
    """Raise `error` unless `data` is a mapping with the keys of `fields` only, each as its field says.

    Keys that begin with `x-` are anybody's own and are not looked at.

    Args:
        data: what the YAML file holds at this place.
        fields: key to field.
        where: file and entry, for the message.
        error: exception class to raise.

    """
    if not MAPPING.accepts(data):
        raise error(f"{where}: expected a mapping, found {shown(data)}.", "Correct that entry.")
    for key in data:
        if key not in fields and not key.startswith("x-"):
            hint = nearest(key, fields) or "."
            raise error(f"{where}: unknown key '{key}'{hint}", "Known keys: " + ", ".join(fields) + ".")
    for key, field in fields.items():
        if key in data and not field.accepts(data[key]):
            found = f"expected {field.expected}, found {shown(data[key])}"
            raise error(f"{where}: key '{key}': {found}.", "Correct that key.")
        if field.required and key not in data:
            raise error(f"{where}: key '{key}' is missing.", f"Add it: {field.expected}.")


def shown(value: Any) -> str:
    """Return `value` for a message: its repr, cut to 60 characters."""
    text = _SHORT.repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


class _Loader(_BaseLoader):  # type: ignore[misc]
    """A safe loader that refuses a key written twice: YAML would keep the last one and say nothing."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Hashable] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, Hashable) and key in seen:
                raise yaml.MarkedYAMLError(problem=f"key {key!r} is written twice", problem_mark=key_node.start_mark)
            if isinstance(key, Hashable):
                seen.add(key)
        mapping: dict[Hashable, Any] = super().construct_mapping(node, deep=deep)
        return mapping


def read_yaml(path: Path, error: type[OvsError]) -> Any:
    """Return the content of a YAML file; raise `error`, naming file and line, if it cannot be read."""
    try:
        return _parse_yaml(path.read_text(encoding="utf-8"))
    except OSError as failure:
        raise error(f"{path} cannot be read: {failure.strerror or failure}.", "Check the path.") from failure
    except (yaml.YAMLError, ValueError) as failure:
        mark = getattr(failure, "problem_mark", None)
        line = f" (line {mark.line + 1})" if mark else ""
        problem = getattr(failure, "problem", None) or str(failure).splitlines()[0]
        raise error(f"{path} is not valid YAML{line}: {problem}.", "Correct the file.") from failure


def _parse_yaml(text: str) -> Any:
    """Return the content of a YAML text; raise YAMLError, whatever is wrong with it."""
    _check_growth(text)
    try:
        return yaml.load(text, Loader=_Loader)
    except (AttributeError, LookupError, TypeError, ValueError) as failure:  # PyYAML's own, of `!!bool maybe` and so on
        reason = f": {failure}" if isinstance(failure, ValueError) else ""
        raise yaml.YAMLError(f"a value is not of its type{reason}") from failure


def _check_growth(text: str) -> None:
    """Raise YAMLError for what would take all memory or stack: levels, or nodes that aliases multiply."""
    sizes: dict[str | None, int] = {}
    stack: list[tuple[str | None, int]] = [(None, 0)]  # of what is open: anchor, and nodes up to here
    nodes = 0
    for event in yaml.parse(text, Loader=_BaseLoader):
        mark: Any = event.start_mark
        if isinstance(event, yaml.CollectionStartEvent):
            stack.append((event.anchor, nodes))
            nodes += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = stack.pop()
            sizes[anchor] = nodes - before
        elif isinstance(event, yaml.ScalarEvent):
            nodes += 1
            sizes[event.anchor] = 1
        elif isinstance(event, yaml.AliasEvent):
            nodes += sizes.get(event.anchor, _MOST_NODES)  # not whole yet: it holds itself
        if len(stack) > _MOST_LEVELS or nodes > _MOST_NODES:
            raise yaml.MarkedYAMLError(problem="it is nested too deeply or without end", problem_mark=mark)

"""A recipe file as plain data, with the line of every value: safe, bounded, and strict about what YAML lets slip.

Scalars are read by YAML 1.2's core schema (https://yaml.org/spec/1.2.2/#103-core-schema): ``1e-1`` is a number,
``on``, ``yes`` and ``1:30`` are text, ``010`` is ten. A key is its text. Tags that ask for anything but the core types,
duplicate keys, and anchors that expand without end are refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from lcmmerge.errors import NotFoundError, RecipeError
from lcmmerge.refs.files import read_bytes

Place = tuple[str | int, ...]

MAX_BYTES = 1 << 20
MAX_VALUES = 10_000  # after anchors are expanded
MAX_DEPTH = 20
CORE = "tag:yaml.org,2002:"
TYPES = ("str", "int", "float", "bool", "null", "map", "seq")


class _CoreLoader(yaml.SafeLoader):
    """SafeLoader with YAML 1.2's scalars in the place of 1.1's."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 - PyYAML's own


for _type, _pattern, _first in (  # the first that fits; the last column: with which characters it may begin
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", [*"tTfF"]),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", [*"-+0123456789"]),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", [*"-+.0123456789"]),
    ("float", r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", [*"-+."]),
):
    _CoreLoader.add_implicit_resolver(f"{CORE}{_type}", re.compile(f"(?:{_pattern})$"), _first)


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong at one place of a recipe."""

    place: Place
    message: str
    line: int | None = None

    def __str__(self) -> str:
        where = ".".join(map(str, self.place))
        line = f"line {self.line}: " if self.line else ""
        return f"{line}{where}: {self.message}" if where else f"{line}{self.message}"


@dataclass(frozen=True, slots=True)
class Document:
    """A recipe file as it was written.

    ``tree``: mappings, lists and scalars. ``lines``: where each place of it stands, from 1.
    """

    name: str
    tree: Any
    lines: Mapping[Place, int]

    def line(self, place: Place) -> int | None:
        """Of the place, or of the nearest one around it."""
        return next((self.lines[place[:end]] for end in range(len(place), 0, -1) if place[:end] in self.lines), None)


@dataclass(slots=True)
class _Reading:
    lines: dict[Place, int] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    values: int = 0

    def add(self, place: Place, message: str, line: int) -> None:
        self.faults.append(Fault(place, message, line))


def read_document(path: Path) -> Document:
    """Raises NotFoundError, RecipeError."""
    try:
        data = read_bytes(path, MAX_BYTES)
    except OSError as error:
        raise NotFoundError(f"recipe {path}: cannot be read ({error.strerror})", "check the path") from None
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise RecipeError(f"{path}: is not UTF-8 text", "is it a recipe?") from None
    return parse_document(text, str(path))


def parse_document(text: str, name: str) -> Document:
    """Raises RecipeError with every fault of the YAML itself."""
    reading = _Reading()
    root = _compose(text, name)
    tree = _value(root, (), 0, reading) if root else None
    if reading.faults:
        raise invalid(name, reading.faults)
    return Document(name, tree, reading.lines)


def parse_scalar(text: str) -> Any:
    """A value as a recipe would read it: ``0.7``, ``true``, ``fp16``. Raises RecipeError."""
    return parse_document(text, repr(text)).tree


def invalid(name: str, faults: list[Fault]) -> RecipeError:
    """In the file's order."""
    ordered = sorted(faults, key=lambda fault: fault.line or 0)
    count = "one fault" if len(faults) == 1 else f"{len(faults)} faults"
    return RecipeError(f"{name}: {count}", "mend them and run it again", [str(fault) for fault in ordered])


def _compose(text: str, name: str) -> yaml.Node | None:
    """The graph of nodes: anchors are shared in it, not expanded."""
    try:
        node: yaml.Node | None = yaml.compose(text, _CoreLoader)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else None
        raise invalid(name, [Fault((), error.problem or error.context or "is not YAML", line)]) from None
    except (yaml.YAMLError, RecursionError, ValueError):
        raise RecipeError(f"{name}: is not YAML", "is it a recipe?") from None
    return node


def _value(node: yaml.Node, place: Place, depth: int, reading: _Reading) -> Any:
    line = node.start_mark.line + 1
    reading.lines.setdefault(place, line)
    reading.values += 1
    if reading.values > MAX_VALUES or depth > MAX_DEPTH:
        if reading.values <= MAX_VALUES + 1:
            reading.add((), "its anchors expand without end, or it is nested too deep", line)
        reading.values = MAX_VALUES + 1
        return None
    if node.tag.removeprefix(CORE) not in TYPES:
        reading.add(place, f"the tag {_short(node.tag)} is not allowed: a recipe holds plain data", line)
        return None
    deeper = depth + 1
    match node:
        case yaml.MappingNode():
            return {key: _value(child, (*place, key), deeper, reading) for key, child in _items(node, place, reading)}
        case yaml.SequenceNode():
            return [_value(child, (*place, index), deeper, reading) for index, child in enumerate(node.value)]
        case _:
            return _scalar(node, place, reading)


def _items(node: yaml.MappingNode, place: Place, reading: _Reading) -> Iterator[tuple[str, yaml.Node]]:
    seen: dict[str, int] = {}
    for key, child in node.value:
        line = key.start_mark.line + 1
        if not isinstance(key, yaml.ScalarNode):
            reading.add(place, "a key must be plain text", line)
        elif key.value in seen:
            reading.add((*place, key.value), f"stands twice: first on line {seen[key.value]}", line)
        else:
            seen[key.value] = line
            reading.lines[(*place, key.value)] = line
            yield key.value, child


def _scalar(node: yaml.Node, place: Place, reading: _Reading) -> Any:
    text = node.value
    try:
        match node.tag.removeprefix(CORE):
            case "int":
                return int(text, 0) if text[:2] in ("0o", "0x") else int(text)
            case "float":
                return float(text.replace(".inf", "inf").replace(".nan", "nan") if text[-1].isalpha() else text)
            case "bool":
                return {"true": True, "false": False}[text.lower()]
            case "null":
                return None
    except (ValueError, KeyError):
        reading.add(place, f"{text!r} is not what its tag {_short(node.tag)} says", node.start_mark.line + 1)
        return None
    return text


def _short(tag: str) -> str:
    return "!!" + tag.removeprefix(CORE) if tag.startswith(CORE) else tag

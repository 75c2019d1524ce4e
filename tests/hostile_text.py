"""Hostile text: lists of prompts and captions, and recipes in YAML."""

from __future__ import annotations

import json
from collections.abc import Iterator
from random import Random
from typing import Any

import yaml
from damage import RAN, VALUES, Mutation, altered

BOMB = "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}{f', *a{n - 1}' * 9}]\n" for n in range(1, 30))
MERGES = "a0: &a0 {x: 1}\n" + "".join(f"a{n}: &a{n} {{<<: [*a{n - 1}, *a{n - 1}], k{n}: 1}}\n" for n in range(1, 25))
TAGS = (
    f"!!python/object/apply:os.system [touch {RAN}]", f"!!python/object/new:os.system [touch {RAN}]",
    "!!python/name:os.system", "!!python/module:os", "!!binary //8=", "!!binary x", "!x y", "!!set {a, b}",
    "!!omap [a: 1]",
    "!!timestamp 2001-01-01", "!!timestamp x", "!!int x", "!!bool 7", "!!float .", "!!null 1", "!!str", "!!map [1]",
    "!!seq {a: 1}", "!<tag:yaml.org,2002:python/none>",
)  # fmt: skip
SCALARS = (
    "2001-01-01", "2001-12-14t21:59:43.10-05:00", "0o9", "0x", "0b1", "1_000", "190:20:30", "1e999", "-.inf", ".nan",
    "9" * 5000, "yes", "NO", "~", "=", "<<", "0777", "1.", "+1", "\"\\ud800\"", "'\\x41'", "\"\\x00\"", "|\n  a",
    ">-\n  a",
    "hf://", "hf://a/b@c", "hf://../..", "zoo:", "zoo:../../..", "file:///etc/passwd", "http://0/x", "/dev/zero",
    "/proc/self/mem", "~/x", "$HOME", "lcm-sdxl", "x\ty", "\"\"",
)  # fmt: skip
DOCUMENTS = (
    BOMB, MERGES, "[" * 20_000, "{a: " * 3_000, "- " * 4_000, "? " * 3_000, "a: &a [*a]", "a: &a {b: *a}",
    "? [a]\n: b", "? {a: b}\n: c", "%YAML 9.9\n---\n", "%TAG ! tag:x,\n---\na: 1", "a: 1\na: 2\n", "\t- x",
    "a: 'x",
    'base: "C:\\models\\x"', "---\na\n---\nb\n", "...\n", "'': {'': }", "*x", "&a", "<<: {version: 1}\n",
    "<<: 1", "x" * 2_000_000, "a: \x1b[31m", "a: \u2028b\u0085c", "\ufeffversion: 1", "", "#",
    "a:\r\n  b: 1\rc: 2", "!!",
    "".join(f"k{n}: {n}\n" for n in range(20_000)), "- - - - - - 1",
    "1: 2\n1.0: 3\ntrue: 4", "null: 1", "a: b: c",
)  # fmt: skip
BROKEN = (b"\xff\xfe", b"\0", b"\xed\xa0\x80", b"\x80", b"\xff\xfea\0:\0", b"\xef\xbb\xbf\xef\xbb\xbf")


def document(data: bytes, random: Random) -> bytes:
    """Another document, alone or after the recipe."""
    other = random.choice(DOCUMENTS).encode("utf-8", "surrogatepass")
    return random.choice((other, data + b"\n" + other, other + b"\n" + data))


def encoding(data: bytes, random: Random) -> bytes:
    place = random.choice((0, random.randrange(len(data) + 1)))
    return random.choice((data[:place] + random.choice(BROKEN) + data[place:], data.decode().encode("utf-16")))


def value(data: bytes, random: Random) -> bytes:
    """At one place of the recipe something that YAML reads in its own way: a tag, a date, an alias, a huge number."""
    tree = yaml.safe_load(data)
    place = random.choice(list(_places(tree)))
    marked = json.dumps(_with(tree, place, "@here@"), default=str)
    return marked.replace('"@here@"', random.choice((*TAGS, *SCALARS, "*a", "&a x"))).encode("utf-8", "surrogatepass")


def wrong_type(data: bytes, random: Random) -> bytes:
    """At one place of the recipe a value of another type; JSON is YAML, but for NaN and Infinity."""
    tree = yaml.safe_load(data)
    return json.dumps(_with(tree, random.choice(list(_places(tree))), random.choice(VALUES))).encode()


def node(data: bytes, random: Random) -> bytes:
    return json.dumps(altered(yaml.safe_load(data), random)).encode()


def key(data: bytes, random: Random) -> bytes:
    """A line of the recipe twice, indented otherwise, under another key, or gone."""
    lines = data.decode().splitlines()
    index = random.randrange(len(lines))
    line = lines[index]
    keys = ("? [a]", "!!binary aa==", "1", "1.5", "true", "~", "2001-01-01", "x" * 70_000,
            "\"\\x1b[31m\"", "a\u2028",
            "<<")  # fmt: skip
    others = ([line, line], [f" {line}"], [f"\t{line}"], [], [f"{random.choice(keys)}:{line.partition(':')[2]}"])
    return "\n".join([*lines[:index], *random.choice(others), *lines[index + 1 :]]).encode()


def _places(tree: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place of a tree but its root."""
    for name, below in tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ():
        yield (*above, name)
        yield from _places(below, (*above, name))


def _with(tree: Any, place: tuple[Any, ...], value: Any) -> Any:
    if not place:
        return value
    copy = dict(tree) if isinstance(tree, dict) else list(tree)
    copy[place[0]] = _with(tree[place[0]], place[1:], value)
    return copy


def lines(data: bytes, random: Random) -> bytes:
    other = (b"", b"\n\n", b"\0", b"\xff\xfe", b"\xef\xbb\xbfa fox\n", b"x" * 100_000, b"\x1b[31mred\n")
    return random.choice((*other, "😀 e\u0301 \u202e\n".encode(), b"\xed\xa0\x80\n", b"a\x00b\n", b" \t \n"))


YAML: dict[str, Mutation] = {
    "document": document, "encoding": encoding, "value": value, "wrong type": wrong_type, "node": node, "key": key,
}  # fmt: skip
TEXT: dict[str, Mutation] = {"lines": lines}

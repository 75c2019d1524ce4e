"""Markdown of what others wrote: names, licences and values that stay text, whatever they hold.

GitHub's flavour, as the Hub shows it: https://github.github.com/gfm/.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import yaml

from lcmmerge.output import plain

FENCE = "```"
_MARKS = {"&": "&amp;", "<": "&lt;", ">": "&gt;", "|": "&#124;", "`": "&#96;"} | {mark: f"\\{mark}" for mark in "\\*[]"}


def text(value: object) -> str:
    """One line of text, also in a cell of a table: no HTML, no link, no code, no further cell."""
    return "".join(_MARKS.get(letter, letter) for letter in plain(value))


def paragraphs(value: str) -> str:
    """The same with its lines."""
    return "\n".join(map(text, value.strip().splitlines()))


def code(value: object) -> str:
    """A span of code, between more backticks than any that it holds."""
    shown = plain(value)
    mark = "`" * (1 + max(map(len, re.findall("`+", shown)), default=0))
    space = " " if shown[:1] == "`" or shown[-1:] == "`" else ""
    return f"{mark}{space}{shown}{space}{mark}"


def fenced(value: object) -> str:
    """YAML in a block of code, which nothing in it ends."""
    return f"{FENCE}yaml\n{as_yaml(value)}{FENCE}"


def front(value: Mapping[str, Any]) -> str:
    """A card's front matter."""
    return f"---\n{as_yaml(value)}---\n"


def as_yaml(value: object) -> str:
    """With a run of backticks as escapes, so that it can stand in a fence; it is read as the same."""
    dumped = yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=1 << 20)
    return str(dumped).replace(FENCE, r"\x60" * len(FENCE))


class _Dumper(yaml.SafeDumper):
    pass


def _string(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    style = '"' if FENCE in value or not value.isprintable() else None  # in which everything has an escape
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style)


_Dumper.add_representer(str, _string)

"""How a search's dimensions are written on the command line: λs of terms, factors of blocks, objectives."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import click

from lcmmerge.cli.candidates import NameType, objectives
from lcmmerge.draw.jobs import MOST_CELLS
from lcmmerge.errors import LcmMergeError
from lcmmerge.tensors.dtypes import LARGEST

Range = tuple[float, float, tuple[float, ...]]  # the least factor, the largest, and those of a grid


class Axis(click.ParamType["tuple[str, tuple[float, ...]]"]):
    """A term and the λs that it takes in a search. ``style=0.2:1.2:0.2`` or ``style=0.5,0.8``."""

    name = "axis"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        term, equals, text = str(value).partition("=")
        try:
            values = _values(text)
        except (ArithmeticError, ValueError):
            values = ()
        if not (term and equals and values):
            self.fail(f"{value!r}: write TERM=FIRST:LAST:STEP, such as style=0.2:1.2:0.2, or TERM=0.5,0.8", param, ctx)
        return term, values


def _values(text: str) -> tuple[float, ...]:
    """In decimals, so that 0.2:1.2:0.2 ends at 1.2. Raises ValueError, ArithmeticError."""
    numbers = [Decimal(value) for value in text.split("," if ":" not in text else ":")]
    if not all(number.is_finite() and abs(number) <= LARGEST for number in numbers):
        raise ValueError
    if ":" not in text:
        return tuple(map(float, numbers))
    first, last, step = numbers
    if step <= 0 or (last - first) / step > MOST_CELLS:
        raise ValueError
    return tuple(float(first + number * step) for number in range(int((last - first) / step) + 1))


class Blocks(click.ParamType["dict[str, Range]"]):
    """Spans of blocks and the factors that they take in a search.

    ``IN,M,OUT=0:1.5`` or ``IN00-IN05=0:1:0.5,M00=0.5:1.5``.
    """

    name = "blocks"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        found: dict[str, Range] = {}
        spans: list[str] = []  # that have no range yet
        try:
            for item in str(value).split(","):
                span, equals, text = item.partition("=")
                spans.append(span.strip())
                if equals:
                    found |= dict.fromkeys(spans, _range(text))
                    spans = []
        except (ArithmeticError, ValueError):
            spans.append(str(value))
        if spans:
            self.fail(f"{value!r}: write BLOCKS=LEAST:MOST, such as IN,M,OUT=0:1.5, or LEAST:MOST:STEP", param, ctx)
        return found


def _range(text: str) -> Range:
    """``LEAST:MOST`` has nothing for a grid but 1. Raises ValueError, ArithmeticError."""
    least, most, *step = text.split(":")
    values = _values(text if step else f"{text}:1")
    if not values:
        raise ValueError
    return float(least), float(most), values if step else (1.0,)


class GridCommand(click.Command):
    """A command with an option of several words. ``--grid`` takes all the axes that follow it."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        spread: list[str] = []
        for word in args:
            follows = len(spread) >= 2 and spread[-2] == "--grid"
            spread += ["--grid", word] if follows and "=" in word and not word.startswith("-") else [word]
        return super().parse_args(ctx, spread)


class ObjectiveType(NameType):
    """An objective of the registry. ``NAME``, or ``NAME=WEIGHTS``."""

    def __init__(self) -> None:
        super().__init__(objectives)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        known = objectives()
        if str(value).partition("=")[0] not in known:
            self.fail(f"{value!r}: no such objective; there are {', '.join(known)}", param, ctx)
        return str(value)


class Storage(click.ParamType[str]):
    """A database's URL, which may hold a password: it is never quoted."""

    name = "URL"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        from lcmmerge.search.address import parse

        try:
            parse(str(value))
        except LcmMergeError as error:
            self.fail(f"{error.message.removeprefix('--storage: ')}: {error.hint}", param, ctx)
        return str(value)


class ObjectiveOption(click.Option):
    """An option whose help lists the registry only when it is shown.

    ``{}`` in its help is what is registered: to find that takes a look at every installed package.
    """

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        found = super().get_help_record(ctx)
        return found and (found[0], found[1].format(", ".join(objectives())))

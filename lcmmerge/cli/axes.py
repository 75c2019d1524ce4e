"""How a search's dimensions are written on the command line: λs of terms, factors of blocks, objectives."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import click
from click.shell_completion import CompletionItem

from lcmmerge.cli.candidates import objective_names
from lcmmerge.cli.shells import words_of

FINEST = 10_000  # λs of one axis
Range = tuple[float, float, tuple[float, ...]]  # the least factor, the largest, and those of a grid


class Axis(click.ParamType["tuple[str, tuple[float, ...]]"]):
    """``style=0.2:1.2:0.2`` or ``style=0.5,0.8``."""

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
    """In decimals, so that 0.2:1.2:0.2 ends at 1.2."""
    if ":" not in text:
        return tuple(float(Decimal(value)) for value in text.split(","))
    first, last, step = map(Decimal, text.split(":"))
    if not all(value.is_finite() for value in (first, last, step)) or step <= 0 or (last - first) / step > FINEST:
        raise ValueError
    return tuple(float(first + number * step) for number in range(int((last - first) / step) + 1))


class Blocks(click.ParamType["dict[str, Range]"]):
    """``IN,M,OUT=0:1.5`` or ``IN00-IN05=0:1:0.5,M00=0.5:1.5``."""

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
    """``--grid`` takes all the axes that follow it."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        spread: list[str] = []
        for word in args:
            follows = len(spread) >= 2 and spread[-2] == "--grid"
            spread += ["--grid", word] if follows and "=" in word and not word.startswith("-") else [word]
        return super().parse_args(ctx, spread)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem[str]]:
        """A further axis, where the last word is one."""
        words = words_of(ctx)
        options = [word for word in words if word.startswith("-")]
        follows = options[-1:] == ["--grid"] and "=" in words[-1]
        axis = next(param for param in self.params if "--grid" in param.opts)
        return [*(axis.shell_complete(ctx, incomplete) if follows else []), *super().shell_complete(ctx, incomplete)]


class ObjectiveOption(click.Option):
    """``{}`` in its help is what is registered: to find that takes a look at every installed package."""

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        found = super().get_help_record(ctx)
        return found and (found[0], found[1].format(", ".join(objective_names())))

"""How help is set: the commands in groups, in the order of the work, and lines that fit a narrow terminal."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import click

from lcmmerge.output import spelled

WIDEST = 80  # columns; longer lines are hard to read


class Formatter(click.HelpFormatter):
    """Lists whose first column leaves room for the second, also in 40 columns."""

    def write_dl(self, rows: Iterable[tuple[str, str]], col_max: int = 30, col_spacing: int = 2) -> None:
        super().write_dl(rows, min(col_max, self.width * 2 // 5), col_spacing)


class Context(click.Context):
    """A click context whose help any terminal can show."""

    formatter_class = Formatter

    def get_help(self) -> str:
        """In letters that the terminal has: click takes an ASCII one for UTF-8."""
        return spelled(sys.stdout, super().get_help())


class Map(click.Group):
    """A group whose help is a map: ``sections``, title → commands; then ``examples``, to start with."""

    context_class = Context

    def __init__(
        self,
        *args: Any,
        sections: Mapping[str, Sequence[click.Command]],
        examples: Sequence[str],
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.sections, self.examples = sections, examples
        for commands in sections.values():
            for command in commands:
                command.context_class = Context
                self.add_command(command)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order of the sections, not of the alphabet."""
        return list(self.commands)

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        """click's own width is never below 50."""
        extra.setdefault("terminal_width", min(shutil.get_terminal_size().columns, WIDEST) - 2)
        return super().make_context(info_name, args, parent, **extra)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The map first."""
        self.format_commands(ctx, formatter)
        click.Command.format_options(self, ctx, formatter)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        widest = max(map(len, self.commands))
        for title, commands in self.sections.items():
            with formatter.section(title):
                formatter.write_dl([(f"{command.name:<{widest}}", command.short_help or "") for command in commands])
        with formatter.section("Start here"):
            for example in self.examples:
                formatter.write(f"{'':>{formatter.current_indent}}{example}\n")

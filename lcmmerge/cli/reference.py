"""The command line's reference, from the commands themselves: ``python -m lcmmerge.cli.reference > docs/cli.md``."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import click

from lcmmerge.cli import cli

WIDTH = 100


def reference() -> str:
    """Markdown: what ``--help`` says, of the whole and of each command."""
    return "\n".join(["# Commands", "", *_lines("lcmmerge", cli)]) + "\n"


def _lines(name: str, command: click.Command) -> Iterator[str]:
    context = click.Context(command, info_name=name, terminal_width=WIDTH)
    yield from (f"## {name}", "", "```", command.get_help(context), "```", "")
    if isinstance(command, click.Group):
        for child in command.list_commands(context):
            yield from _lines(f"{name} {child}", command.commands[child])


if __name__ == "__main__":
    sys.stdout.write(reference())

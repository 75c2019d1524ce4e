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


def _lines(name: str, command: click.Command, parent: click.Context | None = None) -> Iterator[str]:
    """In the context that it is called in, whose settings are its parent's: ``-h`` is ``--help``, too."""
    settings = command.context_settings
    context = click.Context(command, parent, info_name=name, terminal_width=WIDTH, **settings)
    yield from (f"## {context.command_path}", "", "```", command.get_help(context), "```", "")
    if isinstance(command, click.Group):
        for child in command.list_commands(context):
            yield from _lines(child, command.commands[child], context)


if __name__ == "__main__":
    sys.stdout.write(reference())

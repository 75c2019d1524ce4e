"""docs/cli.md is what the commands say of themselves; each says what it is for, and shows an example."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from lcmmerge.cli import cli
from lcmmerge.cli.reference import reference

PAGE = Path(__file__).parents[2] / "docs" / "cli.md"


def test_the_page_is_current() -> None:
    assert PAGE.read_text("utf-8") == reference(), "python -m lcmmerge.cli.reference > docs/cli.md"


@pytest.mark.parametrize("name", sorted(cli.commands))
def test_every_command_explains_itself(name: str) -> None:
    command = cli.commands[name]
    assert command.short_help
    assert len(command.short_help) <= 80
    assert re.search(rf"^ +lcmmerge {name}\b", command.help or "", re.MULTILINE)

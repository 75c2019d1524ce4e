"""docs/cli.md is what the commands say of themselves."""

from __future__ import annotations

from pathlib import Path

from lcmmerge.cli.reference import reference

PAGE = Path(__file__).parents[2] / "docs" / "cli.md"


def test_the_page_is_current() -> None:
    assert PAGE.read_text("utf-8") == reference(), "python -m lcmmerge.cli.reference > docs/cli.md"

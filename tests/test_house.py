"""The house can be kept in mind: one thing a name, and no room too large to read."""

from __future__ import annotations

import ast
from collections import Counter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "lcmmerge"
ROOMS = sorted(path for path in PACKAGE.iterdir() if (path / "__init__.py").is_file())


def test_class_names_are_unique() -> None:
    """But for ``Merge``, which the Python API is too."""
    names = Counter(
        node.name
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.ClassDef)
    )
    assert {name for name, count in names.items() if count > 1} == {"Merge"}


@pytest.mark.parametrize("room", ROOMS, ids=lambda room: room.name)
def test_no_room_is_over_3500_lines(room: Path) -> None:
    """But for architectures and encodings, of which each is read by itself."""
    texts = [path.read_text("utf-8") for path in room.rglob("*.py")]
    entries = ("\nARCHITECTURE = ", "\nENCODING = ")
    assert sum(len(text.splitlines()) for text in texts if not any(entry in text for entry in entries)) <= 3500

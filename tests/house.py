"""The import graph as floors, for docs/contributing.md: ``python tests/house.py`` prints it as Mermaid.

Floors are those of the import contract in pyproject.toml, edges the imports that are in the code, without those that
follow from others.
"""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path

import grimp

ROOT = Path(__file__).parents[1]
PACKAGE = "lcmmerge"


def floors() -> list[list[str]]:
    """From the roof to the ground."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["importlinter"]["contracts"]
    layers = next(contract["layers"] for contract in contracts if contract["type"] == "layers")
    return [[room.removeprefix(f"{PACKAGE}.") for room in re.split(r"\s*[|:]\s*", layer)] for layer in layers]


def edges() -> dict[str, set[str]]:
    """Room → the rooms that its modules import."""
    rooms = [room for floor in floors() for room in floor]
    graph = grimp.build_graph(PACKAGE)
    of = {
        module: room
        for room in rooms
        for module in {f"{PACKAGE}.{room}", *graph.find_descendants(f"{PACKAGE}.{room}")}
    }
    imported: dict[str, set[str]] = {room: set() for room in rooms}
    for module, room in of.items():
        found = {of[other] for other in graph.find_modules_directly_imported_by(module) if other in of}
        imported[room] |= found - {room}
    return imported


def needed(imported: Mapping[str, set[str]]) -> Iterator[tuple[str, str]]:
    """The edges that no longer way stands for."""

    def below(room: str) -> set[str]:
        return imported[room].union(*map(below, imported[room]))

    for room, others in imported.items():
        for other in sorted(others - set[str]().union(*map(below, others))):
            yield room, other


def picture() -> str:
    lines = ["flowchart TB"]
    for number, floor in enumerate(floors()):
        lines += [f'  subgraph f{number}[" "]', *(f"    {room}" for room in floor), "  end"]
    lines += [f"  {room} --> {other}" for room, other in needed(edges())]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.stdout.write(picture())

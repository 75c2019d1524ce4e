"""``run.json``: which steps were done, of what, and what they gave. No clock and no absolute path.

A step is recorded once its outputs are whole. An output's folder is recorded before anything is written to it, so that
the next run knows what a killed one left.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lcmmerge.errors import FormatError
from lcmmerge.tensors.digest import sha256_of
from lcmmerge.tensors.staging import write_text
from lcmmerge.version import __version__

NAME = "run.json"
IMAGES, STUDIES, EXPORTS = "images", "search", "export"  # folders of every output's
VERSION = 1


@dataclass(frozen=True, slots=True)
class Record:
    """A finished step. ``outputs``: path below the run's folder → bytes and sha256."""

    key: str
    outputs: Mapping[str, Mapping[str, Any]]
    figures: Mapping[str, Any]

    def intact(self, out: Path, *, reread: bool = False) -> bool:
        """Whether every output is there, and as it was; ``reread``: as ``sha256_of`` has it."""
        return all(_is(out / path, **expected, reread=reread) for path, expected in self.outputs.items())

    def as_dict(self) -> dict[str, Any]:
        return {"key": self.key, "outputs": self.outputs, "figures": self.figures}


@dataclass(frozen=True, slots=True)
class Manifest:
    """``folders``: the outputs' names. ``steps``: ``fuse NAME`` → record. ``check``: figures beside their bounds."""

    recipe: Mapping[str, Any] = field(default_factory=dict)
    folders: tuple[str, ...] = ()
    steps: Mapping[str, Record] = field(default_factory=dict)
    check: tuple[Mapping[str, Any], ...] = ()

    def with_step(self, name: str, record: Record) -> Manifest:
        return replace(self, steps={**self.steps, name: record})

    def as_dict(self) -> dict[str, Any]:
        return {
            "version": VERSION,
            "lcmmerge": __version__,
            "recipe": self.recipe,
            "outputs": list(self.folders),
            "steps": {name: record.as_dict() for name, record in sorted(self.steps.items())},
            "check": list(self.check),
        }

    def write(self, out: Path) -> None:
        write_text(out / NAME, json.dumps(self.as_dict(), indent=2, ensure_ascii=False) + "\n")


def read_manifest(out: Path) -> Manifest:
    """Empty where no run was there. Raises FormatError."""
    path = out / NAME
    if not path.exists():
        return Manifest()
    try:
        content = json.loads(path.read_text("utf-8"))
        if content["version"] != VERSION:
            raise ValueError
        steps = {name: Record(**record) for name, record in content["steps"].items()}
        return Manifest(content["recipe"], tuple(content["outputs"]), steps, tuple(content["check"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise FormatError(f"{path}: is no record of a run, or damaged", "choose another -o") from None


def record(key: str, out: Path, paths: list[Path], figures: Mapping[str, Any]) -> Record:
    """``paths``: what the step wrote, hashed here."""
    outputs = {
        path.relative_to(out).as_posix(): {"bytes": path.stat().st_size, "sha256": sha256_of([path])}
        for path in sorted(paths)
    }
    return Record(key, outputs, figures)


def _is(path: Path, bytes: int, sha256: str, *, reread: bool) -> bool:
    try:
        return path.stat().st_size == bytes and sha256_of([path], reread=reread) == sha256
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return False

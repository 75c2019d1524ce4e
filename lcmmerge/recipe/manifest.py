"""``run.json``: which steps were done, of what, and what they gave. No clock and no absolute path.

A step is recorded once its outputs are whole. That files are ours is recorded before they take their names, so that the
next run knows what a killed one left.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lcmmerge.errors import FormatError
from lcmmerge.refs.files import inside, is_inside, read_object
from lcmmerge.tensors.digest import sha256_of
from lcmmerge.tensors.made import Made, checked
from lcmmerge.tensors.staging import write_text
from lcmmerge.version import __version__

NAME = "run.json"
VERSION = 1


@dataclass(frozen=True, slots=True)
class Record:
    """A finished step. ``outputs``: path below the run's folder → bytes and sha256."""

    key: str
    outputs: Mapping[str, Mapping[str, Any]]
    figures: Mapping[str, Any]

    def intact(self, out: Path, *, reread: bool = False) -> bool:
        """Whether every output is there, and as it was; ``reread``: as ``sha256_of`` has it."""
        return all(_is(out, path, **expected, reread=reread) for path, expected in self.outputs.items())

    def as_dict(self) -> dict[str, Any]:
        return {"key": self.key, "outputs": self.outputs, "figures": self.figures}


@dataclass(frozen=True, slots=True)
class RunManifest:
    """What a run made and of what, in run.json.

    ``folders``: the outputs' names. ``steps``: ``fuse NAME`` → record. ``check``: figures beside their bounds.

    ``sources``: as RECIPE.lock has them. ``earlier``: files that runs made here, and that no step of this one records.
    """

    recipe: Mapping[str, Any] = field(default_factory=dict)
    folders: tuple[str, ...] = ()
    steps: Mapping[str, Record] = field(default_factory=dict)
    check: tuple[Mapping[str, Any], ...] = ()
    sources: Mapping[str, Any] = field(default_factory=dict)
    earlier: Made = field(default_factory=dict)

    @property
    def made(self) -> Made:
        """All that runs made here, or were about to."""
        found = {path: list(known) for path, known in self.earlier.items()}
        for record in self.steps.values():
            for path, item in record.outputs.items():
                found.setdefault(path, []).append(item["sha256"])
        return found

    def due(self, name: str, key: str, out: Path) -> str | None:
        """Why the step is to be done; None where it is done."""
        record = self.steps.get(name)
        if record is None:
            return "not done yet"
        if record.key != key:
            return "its inputs or parameters changed"
        return None if record.intact(out) else "its output is gone or was changed"

    def with_step(self, name: str, record: Record) -> RunManifest:
        return replace(self, steps={**self.steps, name: record})

    def about_to(self, record: Record) -> RunManifest:
        """As long as it is not sure whether the record's outputs have taken their names."""
        known = {path: [*self.earlier.get(path, ()), item["sha256"]] for path, item in record.outputs.items()}
        return replace(self, earlier={**self.earlier, **known})

    def without_gone(self, out: Path, recorded: Iterable[str]) -> RunManifest:
        """Without what is ``recorded`` by a step now, and what is there no more."""
        gone = {path for path in self.earlier if path in recorded or not (out / path).exists()}
        return replace(self, earlier={path: known for path, known in self.earlier.items() if path not in gone})

    def as_dict(self) -> dict[str, Any]:
        return {
            "version": VERSION,
            "lcmmerge": __version__,
            "recipe": self.recipe,
            "sources": self.sources,
            "outputs": list(self.folders),
            "steps": {name: record.as_dict() for name, record in sorted(self.steps.items())},
            "check": list(self.check),
            **({"earlier": dict(sorted(self.earlier.items()))} if self.earlier else {}),
        }

    def write(self, out: Path) -> None:
        write_text(out / NAME, json.dumps(self.as_dict(), indent=2, ensure_ascii=False) + "\n")


def read_manifest(out: Path) -> RunManifest:
    """Empty where no run was there. Raises FormatError, also for a record of what is not in the folder."""
    path = out / NAME
    if not (path.exists() or path.is_symlink()):
        return RunManifest()
    try:
        content = read_object(inside(out, NAME))
        if content["version"] != VERSION:
            raise ValueError
        steps = {name: _record(**record) for name, record in content["steps"].items()}
        folders = tuple(map(_name, content["outputs"]))
        recipe, sources = _mapping(content["recipe"]), _mapping(content.get("sources", {}))
        earlier = checked(content.get("earlier", {}))
        return RunManifest(recipe, folders, steps, tuple(content["check"]), sources, earlier)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, FormatError):
        raise FormatError(f"{path}: is not a record of a run, or damaged", "choose another -o") from None


def _record(key: str, outputs: Mapping[str, Mapping[str, Any]], figures: Mapping[str, Any]) -> Record:
    checked({path: [item["sha256"]] for path, item in outputs.items()})
    if not all(item.keys() == {"bytes", "sha256"} and type(item["bytes"]) is int for item in outputs.values()):
        raise ValueError
    return Record(str(key), outputs, _mapping(figures))


def _mapping(value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError
    return value


def _name(value: object) -> str:
    if not (isinstance(value, str) and is_inside(value) and "/" not in value):
        raise ValueError
    return value


def record(key: str, content: Path, target: str, files: Iterable[Path], figures: Mapping[str, Any]) -> Record:
    """``files``: of the step, in ``content`` or that itself, which are hashed here, and are to be at ``target``."""
    outputs = {}
    for path in files:
        name = (Path(target) / path.relative_to(content)).as_posix()
        outputs[name] = {"bytes": path.stat().st_size, "sha256": sha256_of([path])}
    return Record(key, dict(sorted(outputs.items())), figures)


def _is(out: Path, name: str, bytes: int, sha256: str, *, reread: bool) -> bool:
    try:
        path = inside(out, name)
        return path.is_file() and path.stat().st_size == bytes and sha256_of([path], reread=reread) == sha256
    except (FormatError, FileNotFoundError, NotADirectoryError):
        return False

"""``RECIPE.lock``: what every source of a recipe was, exactly: commit, files, sizes, hashes, licence. JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lcmmerge.errors import FormatError, LockError
from lcmmerge.refs import PinnedFile
from lcmmerge.refs.files import is_inside, read_object

VERSION = 1
COMMIT = re.compile("[0-9a-f]{40}")
RELOCK = "look at what changed, then `lcmmerge lock` again"


@dataclass(frozen=True, slots=True)
class Locked:
    """A source as it was: ``reference`` and ``variant`` as the recipe has them, ``uri`` with its commit on the Hub."""

    reference: str
    variant: str | None
    uri: str | None
    commit: str | None
    license: str | None
    files: tuple[PinnedFile, ...]

    @property
    def hashes(self) -> dict[str, str]:
        return {file.path: file.sha256 for file in self.files}

    @property
    def nbytes(self) -> int:
        return sum(file.size for file in self.files)

    def as_dict(self) -> dict[str, Any]:
        return {
            "reference": self.reference,
            "variant": self.variant,
            "uri": self.uri,
            "commit": self.commit,
            "license": self.license,
            "files": {file.path: {"bytes": file.size, "sha256": file.sha256 or None} for file in self.files},
        }


Lock = Mapping[str, Locked]


def lock_text(lock: Lock) -> str:
    """The same sources give the same text."""
    sources = {name: locked.as_dict() for name, locked in sorted(lock.items())}
    return json.dumps({"version": VERSION, "sources": sources}, indent=2, ensure_ascii=False) + "\n"


def read_lock(path: Path) -> Lock:
    """Raises LockError."""
    try:
        content = read_object(path)
    except OSError as error:
        raise LockError(f"{path}: cannot be read ({error.strerror})", "`lcmmerge lock` writes it") from None
    except ValueError:
        raise _damaged(path) from None
    if (version := content.get("version")) != VERSION:
        raise LockError(f"{path}: is a lock of version {version}", "use the lcmmerge that wrote it")
    return parse_sources(content.get("sources"), path)


def parse_sources(sources: Any, path: Path) -> Lock:
    """What stands under ``sources`` in the file ``path``. Raises LockError."""
    try:
        return {str(name): _locked(entry) for name, entry in sources.items()}
    except (ValueError, KeyError, TypeError, AttributeError, FormatError):
        raise _damaged(path) from None


def _damaged(path: Path) -> LockError:
    return LockError(f"{path}: is not a lock of lcmmerge, or damaged", RELOCK)


def check_lock(lock: Lock, found: Lock, subject: Path) -> None:
    """Raises LockError with every source that is not as the lock has it."""
    drift = [line for name, locked in sorted(found.items()) for line in _drift(name, lock.get(name), locked)]
    if drift:
        raise LockError(f"{subject}: {len(drift)} differences from what was locked", RELOCK, drift)


def _drift(name: str, locked: Locked | None, found: Locked) -> Iterator[str]:
    if locked is None:
        yield f"{name}: is not in the lock"
    elif (locked.reference, locked.variant) != (found.reference, found.variant):
        yield f"{name}: was {locked.reference}, is {found.reference}" + (f" ({found.variant})" if found.variant else "")
    else:
        before, now = locked.hashes, found.hashes
        yield from (f"{name}: {path} is gone" for path in sorted(before.keys() - now.keys()))
        yield from (f"{name}: {path} is new" for path in sorted(now.keys() - before.keys()))
        yield from (
            f"{name}: {path} changed: sha256 {before[path][:12]}… became {now[path][:12]}…"
            for path in sorted(before.keys() & now.keys())
            if before[path] != now[path]
        )


def _locked(entry: dict[str, Any]) -> Locked:
    """Raises what does not fit: KeyError, TypeError, ValueError."""
    if not all(is_inside(path) for path in entry["files"]):
        raise ValueError
    files = tuple(PinnedFile(path, int(file["bytes"]), str(file["sha256"])) for path, file in entry["files"].items())
    uri, commit, variant, licence = (entry[key] for key in ("uri", "commit", "variant", "license"))
    if any(not isinstance(text, str | None) for text in (uri, commit, variant, licence)):
        raise TypeError
    if commit is not None and not COMMIT.fullmatch(commit):
        raise ValueError
    return Locked(str(entry["reference"]), variant, uri, commit, licence, files)

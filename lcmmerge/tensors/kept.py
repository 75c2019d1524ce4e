"""What is kept between runs, in ``$XDG_CACHE_HOME/lcmmerge``, else ``~/.cache/lcmmerge``. It may be deleted anytime.

In its folder ``sha256`` are hashes of large files: a merge's sources are gigabytes that seldom change. A record is of a
file's path and ``State``, and of no file that has changed within the last half minute.
"""

from __future__ import annotations

import hashlib
import os
import time
from contextlib import suppress
from pathlib import Path

from lcmmerge.errors import OutputError
from lcmmerge.tensors.staging import replace_with
from lcmmerge.tensors.state import state_of

WORTHWHILE = 32 << 20  # bytes; a smaller file is hashed about as fast as a record is written
# Seconds. In less a file could change twice and have the same times, above all one that a program holds mapped: its
# times change when a page first becomes dirty, and next when that was written back, by Linux after 30 s.
SETTLED = 30.0
CHECKSUM = 32  # bytes


def user_cache(name: str) -> Path:
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "lcmmerge" / name


def record_of(path: Path) -> Path | None:
    """Where the sha256 of the file as it now is belongs; nowhere if it is small, or has only just been changed."""
    state = state_of(path)
    if state.size < WORTHWHILE or time.time() - state.ctime / 1e9 < SETTLED:
        return None
    facts = (str(path.resolve()), *state)
    return user_cache("sha256") / hashlib.sha256(repr(facts).encode("utf-8", "surrogateescape")).hexdigest()[:32]


def recall(path: Path) -> bytes | None:
    """What ``keep`` wrote there; None where nothing is, or something damaged."""
    with suppress(OSError):
        stored = path.read_bytes()
        if hashlib.sha256(stored[CHECKSUM:]).digest() == stored[:CHECKSUM]:
            return stored[CHECKSUM:]
    return None


def keep(path: Path, content: bytes) -> None:
    """Write a file of a cache, its sha256 before it; one that cannot be written costs time, and is no error."""
    with suppress(OSError, OutputError):
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_with(path, hashlib.sha256(content).digest() + content)

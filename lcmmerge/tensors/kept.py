"""What is kept between runs, in ``$XDG_CACHE_HOME/lcmmerge``, else ``~/.cache/lcmmerge``. It may be deleted anytime.

In its folder ``sha256`` are hashes of large files: a merge's sources are gigabytes that seldom change. A record is of a
file's path, device, inode, size, mtime and ctime, the last of which no program can set back.
"""

from __future__ import annotations

import hashlib
import os
import time
from contextlib import suppress
from pathlib import Path

from lcmmerge.errors import OutputError
from lcmmerge.tensors.staging import replace_with

WORTHWHILE = 32 << 20  # bytes; a smaller file is hashed about as fast as a record is written
SETTLED = 1.0  # seconds; in less a file could change twice and have the same times
CHECKSUM = 32  # bytes


def user_cache(name: str) -> Path:
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "lcmmerge" / name


def record_of(path: Path) -> Path | None:
    """Where the sha256 of the file as it now is belongs; nowhere if it is small, or has only just been changed."""
    with path.open("rb") as file:  # opened, since a network file system may tell a path's state of a while ago
        state = os.fstat(file.fileno())
    if state.st_size < WORTHWHILE or time.time() - state.st_ctime < SETTLED:
        return None
    facts = (str(path.resolve()), state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns)
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

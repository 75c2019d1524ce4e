"""A file as the system describes it: what shows that it was changed, or that another has its name."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple


class State(NamedTuple):
    """By what a file is known to be unchanged.

    ``device`` and ``inode`` tell the file, the others its content: no program can set the ctime back.

    Times are in nanoseconds.
    """

    device: int
    inode: int
    size: int
    mtime: int
    ctime: int


def state_of(path: Path) -> State:
    """Raises OSError."""
    with path.open("rb") as file:  # opened, since a network file system may tell a path's state of a while ago
        found = os.fstat(file.fileno())
    return State(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)

"""What others wrote or named: small files read whole, and names that stay in the folder that they were given in."""

from __future__ import annotations

import errno
import json
import os
import re
import stat
from pathlib import Path, PureWindowsPath
from typing import Any, BinaryIO

from lcmmerge.errors import FormatError

_XET = re.compile(r"[0-9a-f]{64}")
MOST = 64 << 20  # bytes of a text or JSON file; the largest of a published model are tokenizers of 35 MB


def read_bytes(path: Path, most: int = MOST) -> bytes:
    """A regular file of at most ``most`` bytes.

    Raises OSError, also for what is no regular file (a pipe would be waited for, and ``/dev/zero`` never ends) and for
    what is larger.
    """
    with open_regular(path) as file:
        if os.fstat(file.fileno()).st_size > most:
            raise OSError(errno.EFBIG, f"larger than {most:,} bytes", str(path))
        return file.read(most)


def open_regular(path: Path) -> BinaryIO:
    """Raises OSError, also for what is no regular file."""
    _check(path.stat(), path)
    file = os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb")
    try:
        _check(os.fstat(file.fileno()), path)  # of what was opened, which may be another by now
    except OSError:
        file.close()
        raise
    return file


def _check(state: os.stat_result, path: Path) -> None:
    if stat.S_ISDIR(state.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(state.st_mode):
        raise OSError(errno.EINVAL, "not a regular file", str(path))


def read_text(path: Path, most: int = MOST) -> str:
    """UTF-8, with or without a byte-order mark. Raises OSError as ``read_bytes`` does, UnicodeDecodeError."""
    return read_bytes(path, most).decode("utf-8-sig")


def read_object(path: Path, most: int = MOST) -> dict[str, Any]:
    """A JSON object. Raises OSError as ``read_bytes`` does, ValueError for anything else."""
    return parse_object(read_bytes(path, most))


def parse_object(content: bytes) -> dict[str, Any]:
    """A JSON object in UTF-8. Raises ValueError."""
    try:
        value = json.loads(content.decode("utf-8"))
    except RecursionError:
        raise ValueError("nested too deep") from None
    if not isinstance(value, dict):
        raise ValueError("not a JSON object")
    return value


def is_inside(name: str) -> bool:
    """Whether ``name``, with slashes, is that of something in a folder or below it, on every system."""
    parts = name.split("/")
    return (
        not {"", ".", ".."} & set(parts)
        and all(PureWindowsPath(part).name == part for part in parts)
        and not any(ord(letter) < 32 or ord(letter) == 127 for letter in name)
    )


def inside(folder: Path, name: str, *, cached: bool = False) -> Path:
    """``folder / name`` of a name that a file gave: of something in the folder, through no link.

    ``cached``: but for links to the Hub cache's own blobs, of which its snapshots are made. Raises FormatError.
    """
    if not is_inside(name):
        raise FormatError(f"{folder}: the name {name!r} leads out of it", "do not trust what names it")
    path = folder / name
    if (linked := link_in(folder, name)) and not (cached and _is_blob(path)):
        raise FormatError(f"{linked}: is a symbolic link", "put what it leads to in its place")
    return path


def link_in(folder: Path, name: str) -> Path | None:
    """The file, or the folder on the way to it from ``folder``, that is a symbolic link."""
    path = folder / name
    steps = (path, *path.parents[: name.count("/")])
    return next((step for step in steps if step.is_symlink()), None)


def _is_blob(path: Path) -> bool:
    """Whether it leads from a snapshot to a blob of the same repository in the Hub's cache, or to one that is shared.

    ``models--owner--repo/snapshots/COMMIT/… → models--owner--repo/blobs/HASH → blobs/HA/HASH``, the last step of what
    came by Xet: https://huggingface.co/docs/huggingface_hub/guides/manage-cache
    """
    snapshots = next((parent for parent in path.absolute().parents if parent.name == "snapshots"), None)
    if snapshots is None:
        return False
    repository, blob = snapshots.parent.resolve(), path.resolve()
    shared = repository.parent / "blobs" / blob.name[:2] / blob.name
    return blob.is_relative_to(repository / "blobs") or (blob == shared and bool(_XET.fullmatch(blob.name)))

"""Two renames that Python's ``os`` lacks: exchanging two names at once, and taking a name only where it is free.

Linux: https://man7.org/linux/man-pages/man2/rename.2.html (``renameat2``); macOS: renameatx_np(2). A file system may
support neither, as NFS does.
"""

from __future__ import annotations

import errno
import os
import sys
from functools import cache
from typing import Any

SWAP, ONLY_NEW = (2, 4) if sys.platform == "darwin" else (2, 1)
_UNSUPPORTED = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP)


def exchange(name: str, folder: int, other: str, other_folder: int) -> bool:
    """Each gets the other's name in one step; False where that cannot be done. ``folder``: a descriptor.

    Raises OSError, after which both are where they were.
    """
    return _renamed(name, folder, other, other_folder, SWAP)


def rename_new(name: str, folder: int, other: str, other_folder: int) -> None:
    """Raises FileExistsError, and OSError as ``os.rename`` does."""
    if _renamed(name, folder, other, other_folder, ONLY_NEW):
        return
    try:  # not in one step
        os.stat(other, dir_fd=other_folder, follow_symlinks=False)
    except FileNotFoundError:
        os.rename(name, other, src_dir_fd=folder, dst_dir_fd=other_folder)
        return
    raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), other)


def _renamed(name: str, folder: int, other: str, other_folder: int, flags: int) -> bool:
    function = _function()
    if function is None:
        return False
    import ctypes

    sys.audit("os.rename", name, other, folder, other_folder)  # as os.rename tells who listens
    if function(folder, os.fsencode(name), other_folder, os.fsencode(other), flags) == 0:
        return True
    if (number := ctypes.get_errno()) in _UNSUPPORTED:
        return False
    raise OSError(number, os.strerror(number), other)


@cache
def _function() -> Any:
    """None where the C library has none."""
    import ctypes

    library = ctypes.CDLL(None, use_errno=True)
    return getattr(library, "renameatx_np" if sys.platform == "darwin" else "renameat2", None)

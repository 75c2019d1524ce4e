"""Reading and writing in blocks without filling the page cache.

A page-cache write of a 7 GB file costs more kernel time than the whole merge's arithmetic, and a cold read as much
again. So blocks go to the disk directly (O_DIRECT) where the file system can, come from the page cache where they
already lie in it (RWF_NOWAIT), and from the disk directly where they do not. Elsewhere plain reads and writes do.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import threading
from pathlib import Path
from types import TracebackType
from typing import Self

from lcmmerge.errors import FormatError, OutputError

PAGE = 4096
COLD = 64 << 20  # bytes after one that the page cache lacked, for which it is not asked: that alone starts readahead
_DIRECT = getattr(os, "O_DIRECT", 0)
_NOWAIT = getattr(os, "RWF_NOWAIT", 0)


def page_floor(offset: int) -> int:
    return offset - offset % PAGE


def page_ceil(offset: int) -> int:
    return page_floor(offset + PAGE - 1)


class Buffer:
    """Page-aligned memory, reused: a fresh one per tensor would cost more in page faults than in arithmetic."""

    def __init__(self, capacity: int) -> None:
        self.capacity = page_ceil(capacity) + PAGE
        self.memory = memoryview(mmap.mmap(-1, self.capacity))

    def fitting(self, nbytes: int) -> Buffer:
        """This buffer if ``nbytes`` at any alignment fit, else a larger one."""
        return self if nbytes <= self.capacity - PAGE else Buffer(nbytes + PAGE)


class Files:
    """Input files, each opened once; safe to share between threads.

    ``keep``: read through the page cache, and so once from the disk, where somebody is to read the same files again.
    """

    def __init__(self, *, keep: bool = False) -> None:
        self._keep = keep
        self._lock = threading.Lock()
        self._descriptors: dict[tuple[Path, int], int] = {}
        self._cold: dict[Path, range] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        for descriptor in self._descriptors.values():
            os.close(descriptor)
        self._descriptors.clear()

    def _open(self, path: Path, flags: int) -> int:
        with self._lock:
            if (path, flags) not in self._descriptors:
                self._descriptors[path, flags] = os.open(path, os.O_RDONLY | flags)
            return self._descriptors[path, flags]

    def read(self, path: Path, offset: int, into: memoryview, spare: Buffer) -> memoryview:
        """``len(into)`` bytes at ``offset``: in ``into``, or in ``spare`` where alignment wanted it there."""
        if _NOWAIT and offset not in self._cold.get(path, ()) and self._read_cached(path, offset, into):
            return into
        if _DIRECT and not self._keep and (found := self._read_direct(path, offset, len(into), spare)) is not None:
            return found
        done = 0
        while done < len(into):
            count = os.preadv(self._open(path, 0), [into[done:]], offset + done)
            if count == 0:
                raise FormatError(f"{path}: ended too early", "the file was changed while it was read")
            done += count
        return into

    def _read_cached(self, path: Path, offset: int, into: memoryview) -> bool:
        try:
            if os.preadv(self._open(path, 0), [into], offset, _NOWAIT) == len(into):
                return True
        except OSError:  # EAGAIN: not in the cache; EOPNOTSUPP: a file system without the flag
            pass
        self._cold[path] = range(offset, offset + COLD)
        return False

    def _read_direct(self, path: Path, offset: int, nbytes: int, spare: Buffer) -> memoryview | None:
        begin, end = page_floor(offset), page_ceil(offset + nbytes)
        if end - begin > spare.capacity:
            return None
        try:
            count = os.preadv(self._open(path, _DIRECT), [spare.memory[: end - begin]], begin)
        except OSError:  # EINVAL: a file system without direct I/O
            return None
        return (
            spare.memory[offset - begin : offset - begin + nbytes]
            if count >= offset - begin + nbytes
            else None
        )


class BlockWriter:
    """A file of known size, written in blocks at known offsets, from any thread, in any order.

    The pages at a block's two ends are shared with its neighbours; they are kept back until both have come.
    """

    def __init__(self, path: Path, size: int) -> None:
        self.path, self.size = path, size
        self._lock = threading.Lock()
        self._edges: dict[int, tuple[Buffer, int]] = {}
        flags = os.O_CREAT | os.O_RDWR | os.O_TRUNC
        try:
            self._descriptor = os.open(path, flags | _DIRECT, 0o644)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise output_error(path, error) from None
            self._descriptor = os.open(path, flags, 0o644)
        self._reserve()

    def _reserve(self) -> None:
        """Take the space now, so that a full disk is met here and not in the middle."""
        try:
            if hasattr(os, "posix_fallocate"):  # not on macOS
                os.posix_fallocate(self._descriptor, 0, max(self.size, 1))
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                os.close(self._descriptor)
                raise output_error(self.path, error) from None

    def write(self, buffer: Buffer, offset: int, nbytes: int) -> None:
        """``nbytes`` at file ``offset``; they lie in ``buffer`` from ``offset % PAGE`` on."""
        end, base = offset + nbytes, page_floor(offset)
        inner, outer = page_ceil(offset), page_floor(end)
        if inner > outer:  # inside one page
            self._edge(base, buffer.memory[offset - base : end - base], offset - base)
            return
        if offset < inner:
            self._edge(base, buffer.memory[offset - base : PAGE], offset - base)
        if inner < outer:
            self._put(buffer.memory[inner - base : outer - base], inner)
        if outer < end:
            self._edge(outer, buffer.memory[outer - base : end - base], 0)

    def _edge(self, page: int, data: memoryview, start: int) -> None:
        with self._lock:
            edge, filled = self._edges.pop(page, (None, 0))
            edge = edge or Buffer(0)
            edge.memory[start : start + len(data)] = data
            filled += len(data)
            if filled < PAGE:
                self._edges[page] = (edge, filled)
                return
        self._put(edge.memory[:PAGE], page)

    def _put(self, data: memoryview, offset: int) -> None:
        try:
            self._write_all(data, offset)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise output_error(self.path, error) from None
            # This file system wants another alignment.
            flags = fcntl.fcntl(self._descriptor, fcntl.F_GETFL)
            fcntl.fcntl(self._descriptor, fcntl.F_SETFL, flags & ~_DIRECT)
            self._write_all(data, offset)

    def _write_all(self, data: memoryview, offset: int) -> None:
        done = 0
        while done < len(data):
            done += os.pwrite(self._descriptor, data[done:], offset + done)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        os.close(self._descriptor)

    def finish(self) -> None:
        """Write the last, partial page; make everything durable."""
        for page, (edge, _) in sorted(self._edges.items()):
            self._put(edge.memory[:PAGE], page)
        self._edges.clear()
        try:
            os.truncate(self._descriptor, self.size)
            os.fsync(self._descriptor)
        except OSError as error:
            raise output_error(self.path, error) from None


def output_error(path: Path, error: OSError) -> OutputError:
    hints = {
        errno.ENOSPC: "free some space, or write elsewhere with -o",
        errno.EDQUOT: "your disk quota is used up: free some space, or write elsewhere with -o",
        errno.EFBIG: "larger than the file system or `ulimit -f` allows: cut it with --max-shard-size",
        errno.EACCES: "choose a folder that you may write to with -o",
        errno.EPERM: "choose a folder that you may write to with -o",
        errno.EROFS: "choose a folder that you may write to with -o",
        errno.ENOENT: "create the folder first",
        errno.ENAMETOOLONG: "choose a shorter name with -o",
        errno.ENOTDIR: "a part of the path is a file: choose another with -o",
    }
    cure = hints.get(error.errno or 0, "check the disk, or write elsewhere with -o")
    return OutputError(f"{path}: cannot be written ({error.strerror})", cure)

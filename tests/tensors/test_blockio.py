"""Blocks in and out of files, aligned or not, cached or not."""

import ctypes
import mmap
import os
import sys
import threading
from pathlib import Path

import pytest

from lcmmerge.errors import FormatError, OutputError
from lcmmerge.tensors.blockio import PAGE, BlockWriter, Buffer, Files, page_ceil, page_floor

CONTENT = os.urandom(5 * PAGE + 123)


@pytest.fixture
def written(tmp_path):
    """On the disk, and not in the page cache (where the file system lets go of it)."""
    path = tmp_path / "data"
    with path.open("wb") as file:
        file.write(CONTENT)
        file.flush()
        os.fsync(file.fileno())
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return path


def put(writer, offset, data):
    buffer = Buffer(len(data))
    buffer.memory[offset % PAGE : offset % PAGE + len(data)] = data
    writer.write(buffer, offset, len(data))


def test_pages():
    assert [page_floor(offset) for offset in (0, 1, PAGE - 1, PAGE)] == [0, 0, 0, PAGE]
    assert [page_ceil(offset) for offset in (0, 1, PAGE - 1, PAGE)] == [0, PAGE, PAGE, PAGE]


@pytest.mark.parametrize("nbytes", [0, 1, PAGE - 1, PAGE, PAGE + 1])
def test_a_buffer_holds_its_capacity_at_any_alignment(nbytes):
    buffer = Buffer(nbytes)
    assert len(buffer.memory) >= nbytes + PAGE - 1
    assert buffer.fitting(nbytes) is buffer
    larger = buffer.fitting(10 * PAGE)
    assert larger is not buffer
    assert len(larger.memory) >= 11 * PAGE - 1


@pytest.mark.parametrize(
    ("offset", "nbytes"), [(0, 10), (1, PAGE), (PAGE, PAGE), (PAGE - 1, 2), (7, 5 * PAGE), (5 * PAGE + 100, 23), (3, 0)]
)
def test_read_again_and_again(offset, nbytes, written):
    """First from the disk, then from wherever the first read left it."""
    with Files() as files:
        for spare in (Buffer(nbytes), Buffer(0)):
            into = memoryview(bytearray(nbytes))
            assert files.read(written, offset, into, spare) == CONTENT[offset : offset + nbytes]


def test_a_file_that_shrinks_while_it_is_read(written):
    with Files() as files, pytest.raises(FormatError, match="ended too early"):
        files.read(written, 5 * PAGE, memoryview(bytearray(PAGE)), Buffer(PAGE))


def test_files_are_closed(written):
    descriptors = Path("/proc/self/fd")
    if not descriptors.is_dir():
        pytest.skip("no /proc here")
    before = len(list(descriptors.iterdir()))
    with Files() as files:
        files.read(written, 0, memoryview(bytearray(10)), Buffer(10))
        assert len(list(descriptors.iterdir())) > before
    assert len(list(descriptors.iterdir())) == before


@pytest.mark.parametrize("size", [0, 1, PAGE, PAGE + 1, 3 * PAGE - 1])
def test_any_size(size, tmp_path):
    with BlockWriter(tmp_path / "out", size) as writer:
        if size:
            put(writer, 0, CONTENT[:size])
        writer.finish()
    assert (tmp_path / "out").read_bytes() == CONTENT[:size]


def test_many_threads_share_pages(tmp_path):
    """Blocks of 100 bytes: each page is put together from forty of them, by four threads."""
    offsets = list(range(0, len(CONTENT), 100))
    with BlockWriter(tmp_path / "out", len(CONTENT)) as writer:

        def work(first):
            for offset in offsets[first::4]:
                put(writer, offset, CONTENT[offset : offset + 100])

        threads = [threading.Thread(target=work, args=(first,)) for first in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        writer.finish()
    assert (tmp_path / "out").read_bytes() == CONTENT


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(OutputError, match="No such file") as caught:
        BlockWriter(tmp_path / "nowhere" / "out", 10)
    assert caught.value.hint


def test_an_older_file_is_emptied(tmp_path):
    (tmp_path / "out").write_bytes(CONTENT)
    with BlockWriter(tmp_path / "out", 3) as writer:
        put(writer, 0, b"new")
        writer.finish()
    assert (tmp_path / "out").read_bytes() == b"new"


@pytest.mark.skipif(not hasattr(os, "RWF_NOWAIT"), reason="only Linux tells what is in the page cache")
def test_what_will_be_read_again_stays_in_the_page_cache(written):
    with Files(keep=True) as files:
        found = files.read(written, 0, memoryview(bytearray(len(CONTENT))), Buffer(len(CONTENT)))
    assert bytes(found) == CONTENT
    with written.open("rb") as file:
        assert os.preadv(file.fileno(), [bytearray(len(CONTENT))], 0, os.RWF_NOWAIT) == len(CONTENT)


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux what is in the page cache")
def test_a_cold_file_stays_cold(tmp_path):
    """Asking the page cache alone starts reading ahead, and a file would be read twice."""
    path, block, size = tmp_path / "data", 1 << 16, 16 << 20
    with path.open("wb") as file:
        file.write(os.urandom(size))
        file.flush()
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    before = bytes_cached(path)
    if before > size // 4:
        pytest.skip("this file system keeps what it was asked to drop")
    with Files() as files:
        into, spare = memoryview(bytearray(block)), Buffer(block)
        for offset in range(0, size, block):
            files.read(path, offset, into, spare)
    assert bytes_cached(path) <= before + size // 4


def bytes_cached(path):
    """How much of a file lies in the page cache, by mincore(2), which itself reads nothing."""
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
        pages = (ctypes.c_ubyte * (-(-len(mapped) // mmap.PAGESIZE)))()
        address = (ctypes.c_char * len(mapped)).from_buffer(mapped)
        try:
            assert ctypes.CDLL(None).mincore(ctypes.byref(address), ctypes.c_size_t(len(mapped)), pages) == 0
        finally:
            del address
    return sum(page & 1 for page in pages) * mmap.PAGESIZE

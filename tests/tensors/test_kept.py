"""sha256 kept between runs: of the file that it is of, and of no other."""

import hashlib
import mmap
import os
import time

import pytest

from lcmmerge.tensors import kept
from lcmmerge.tensors.digest import sha256_of
from lcmmerge.tensors.kept import WORTHWHILE, keep, record_of

SETTLED = 1.0  # second, in the place of half a minute


@pytest.fixture
def cache(monkeypatch, tmp_path):
    monkeypatch.setattr(kept, "SETTLED", SETTLED)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "lcmmerge" / "sha256"


def write(path, content):
    path.write_bytes(content.ljust(WORTHWHILE, b"\0"))
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_large_file_is_hashed_once_for_each_of_its_states(cache, tmp_path):
    path = tmp_path / "model"
    first = write(path, b"first")
    assert sha256_of([path]) == first
    assert not cache.exists()  # it might change again, and show the same times
    time.sleep(SETTLED)
    assert sha256_of([path]) == first
    (record,) = cache.iterdir()
    keep(record, b"0" * 64)
    assert sha256_of([path]) == "0" * 64
    assert sha256_of([path], reread=True) == first
    for damaged in (b"half a reco", record.read_bytes()[:-1] + b"x", b""):
        record.write_bytes(damaged)
        assert sha256_of([path]) == first
    times = path.stat()
    second = write(path, b"other")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert sha256_of([path]) == second


def test_another_file_at_the_same_path_is_another(cache, tmp_path):
    path, other = tmp_path / "model", tmp_path / "other"
    write(path, b"first")
    second = write(other, b"other")
    time.sleep(SETTLED)
    sha256_of([path])
    other.replace(path)
    time.sleep(SETTLED)
    assert sha256_of([path]) == second


def test_a_small_file_is_not_recorded(cache, tmp_path):
    path = tmp_path / "config"
    path.write_bytes(b"small")
    time.sleep(SETTLED)
    assert record_of(path) is None


def test_a_cache_that_cannot_be_written_is_no_error(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    path = tmp_path / "model"
    found = write(path, b"first")
    time.sleep(SETTLED)
    assert sha256_of([path]) == found


def test_a_file_that_a_program_holds_mapped_may_change_and_show_it_later(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "model"
    write(path, b"first")
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as held:
        held[100] = 1  # from now on its page is dirty, and no further change of it changes the file's times
        sha256_of([path])
        held[100] = 2
        assert sha256_of([path]) == hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_name_is_no_hash(tmp_path):
    """The Hub's cache names blobs so, and so can anybody."""
    blob = tmp_path / "models--a--b" / "blobs" / ("0" * 64)
    blob.parent.mkdir(parents=True)
    blob.write_bytes(b"other")
    assert sha256_of([blob]) == hashlib.sha256(b"other").hexdigest()

"""Small files of others, and the names that they give."""

import os
from pathlib import Path

import pytest

from lcmmerge.errors import FormatError
from lcmmerge.refs.files import inside, is_inside, read_bytes, read_object, read_text


def test_a_regular_file_is_read_whole_and_only_up_to_its_bound(tmp_path):
    (tmp_path / "file").write_bytes(b"12345")
    assert read_bytes(tmp_path / "file", 5) == b"12345"
    with pytest.raises(OSError, match="larger than 4 bytes"):
        read_bytes(tmp_path / "file", 4)


def test_what_is_no_regular_file_is_never_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe")  # opening it would wait for a writer
    (tmp_path / "endless").symlink_to("/dev/zero")
    for name in ("pipe", "endless"):
        with pytest.raises(OSError, match="not a regular file"):
            read_bytes(tmp_path / name)
    with pytest.raises(IsADirectoryError):
        read_bytes(tmp_path)
    with pytest.raises(FileNotFoundError):
        read_bytes(tmp_path / "nowhere")


def test_text_is_utf8_with_or_without_a_mark(tmp_path):
    (tmp_path / "marked").write_bytes("λ".encode("utf-8-sig"))
    assert read_text(tmp_path / "marked") == "λ"


@pytest.mark.parametrize("content", [b"", b"[1]", b'{"a": ', b"\xff", b"[" * 200_000, b"1" * 5000])
def test_an_object_or_a_value_error(content, tmp_path):
    (tmp_path / "file.json").write_bytes(content)
    with pytest.raises(ValueError):
        read_object(tmp_path / "file.json")


@pytest.mark.parametrize("name", ["a", "a/b", "a.b/c-d", "…", "a b", "café/λ.json"])
def test_names_that_stay(name, tmp_path):
    assert is_inside(name)
    assert inside(tmp_path, name) == tmp_path / name


@pytest.mark.parametrize(
    "name",
    ["", "/", "/etc/passwd", "..", "a/..", "a/../../b", "./a", "a//b", "a/", "a\\b", "C:\\b", "C:b", "a\0", "a\nb"],
)
def test_names_that_lead_out(name, tmp_path):
    assert not is_inside(name)
    with pytest.raises(FormatError, match="leads out"):
        inside(tmp_path, name)


def test_no_link_on_the_way(tmp_path):
    (tmp_path / "outside").mkdir()
    folder = tmp_path / "folder"
    (folder / "real").mkdir(parents=True)
    (folder / "linked").symlink_to("../outside")
    (folder / "real" / "file").symlink_to("../../outside/file")
    for name in ("linked", "linked/file", "real/file"):
        with pytest.raises(FormatError, match="symbolic link"):
            inside(folder, name)


def snapshot(root: Path) -> Path:
    """A file of the Hub's cache as huggingface_hub lays it: a link to a blob."""
    (root / "blobs").mkdir(parents=True)
    (root / "blobs" / "123").write_text("vocabulary")
    folder = root / "snapshots" / "c0ffee"
    (folder / "tokenizer").mkdir(parents=True)
    (folder / "tokenizer" / "vocab.json").symlink_to("../../../blobs/123")
    return folder


def test_the_hub_caches_own_links_are_files(tmp_path):
    folder = snapshot(tmp_path / "models--a--b")
    assert inside(folder, "tokenizer/vocab.json", cached=True).read_text() == "vocabulary"
    with pytest.raises(FormatError, match="symbolic link"):
        inside(folder, "tokenizer/vocab.json")


def test_a_blob_that_repositories_share_is_the_caches_own(tmp_path):
    name = "ab" * 32
    folder = snapshot(tmp_path / "models--a--b")
    (tmp_path / "blobs" / "ab").mkdir(parents=True)
    (tmp_path / "blobs" / "ab" / name).write_text("weights")
    (tmp_path / "models--a--b" / "blobs" / "456").symlink_to(f"../../blobs/ab/{name}")
    (folder / "model").symlink_to("../../blobs/456")
    assert inside(folder, "model", cached=True).read_text() == "weights"
    (tmp_path / "blobs" / "ab" / "key").write_text("key")
    (folder / "key").symlink_to("../../../blobs/ab/key")
    with pytest.raises(FormatError, match="symbolic link"):
        inside(folder, "key", cached=True)


def test_a_forged_cache_leads_nowhere_else(tmp_path):
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "key").write_text("key")
    blob = snapshot(tmp_path / "models--a--b")
    (tmp_path / "models--a--b" / "blobs" / "key").symlink_to(tmp_path / "secret" / "key")
    (blob / "key").symlink_to("../../blobs/key")
    whole = snapshot(tmp_path / "models--c--d")
    (tmp_path / "models--c--d" / "blobs").rename(tmp_path / "models--c--d" / "old")
    (tmp_path / "models--c--d" / "blobs").symlink_to(tmp_path / "secret")
    (whole / "key").symlink_to("../../blobs/key")
    for folder in (blob, whole):
        with pytest.raises(FormatError, match="symbolic link"):
            inside(folder, "key", cached=True)

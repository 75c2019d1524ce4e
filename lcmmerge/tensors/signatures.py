"""What a file is by its first bytes: suffixes are renamed by people, and pages are downloaded in place of weights."""

from __future__ import annotations

import re
from pathlib import Path

from lcmmerge.errors import FormatError
from lcmmerge.refs.files import open_regular

HEAD = 512  # bytes that are enough to tell
LONGEST_HEADER = 100_000_000  # bytes of a safetensors header, by the reference implementation
SHOWN = 60  # letters of a text in a message
ZIP = b"PK\x03\x04"
PICKLE = re.compile(rb"\x80[\x02-\x05]")
ONNX = re.compile(rb"\x08[\x01-\x20]\x12.[ -~]", re.DOTALL)  # ir_version, then the producer's name
TEXT = re.compile(rb"[\t\n\r -~\x80-\xff]+")
AGAIN = "download or export the file again"
UNPACK = "unpack it, and name the file in it"
SIGN_IN = "download it again, signed in or with the site's token"

# First bytes → what such a file is, and what helps.
FOREIGN = {
    b"ggml": ("GGML", "take the safetensors of this model"),
    b"\x89HDF": ("HDF5, as Keras writes it", "take the safetensors of this model"),
    b"7z\xbc\xaf": ("a 7z archive", UNPACK),
    b"Rar!": ("a RAR archive", UNPACK),
    b"\x1f\x8b": ("a gzip archive", UNPACK),
    b"BZh": ("a bzip2 archive", UNPACK),
    b"\xfd7zXZ": ("an xz archive", UNPACK),
    b"\x28\xb5\x2f\xfd": ("a zstd archive", UNPACK),
    b"\x93NUMPY": ("one array of numpy", "take the safetensors of this model"),
    b"%PDF": ("a PDF", AGAIN),
    b"\x89PNG": ("a picture (PNG)", "name the model, not its preview"),
    b"\xff\xd8\xff": ("a picture (JPEG)", "name the model, not its preview"),
    b"RIFF": ("a picture (WebP) or a sound", "name the model, not its preview"),
    b"version https://git-lfs": (
        "a Git LFS pointer: the repository was cloned without its large files",
        "run `git lfs pull` in the clone, or download the file itself",
    ),
}


def head_of(path: Path) -> bytes:
    """The first bytes of a file; none where it cannot be read, which its reader will say."""
    try:
        with open_regular(path) as file:
            return file.read(HEAD)
    except OSError:
        return b""


def is_safetensors(head: bytes) -> bool:
    """8 bytes of a length that may be a header's, then JSON."""
    return head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= LONGEST_HEADER


def foreign(head: bytes, path: Path) -> FormatError | None:
    """The error that names what begins so and holds no weights that we read; None where that is not known."""
    found = _foreign(head)
    return FormatError(f"{path}: is {found[0]}, not weights", found[1]) if found else None


def _foreign(head: bytes) -> tuple[str, str] | None:
    if not head:
        return "empty", AGAIN
    if not head.strip(b"\0"):
        return "all zeros at its beginning: a download that only reserved its room", AGAIN
    if is_safetensors(head):
        return None
    for begins, known in FOREIGN.items():
        if head.startswith(begins):
            return known
    if head[257:262] == b"ustar":
        return "a tar archive", UNPACK
    if ONNX.match(head):
        return "an ONNX graph", "take the checkpoint that it was exported from"
    if head.startswith(ZIP):
        return "a zip archive, as torch.save writes it", "name it .ckpt"
    if PICKLE.match(head):
        return (
            "a pickle without an archive, as torch before 1.6 wrote it",
            "load it with torch.load(…, weights_only=True), and save it again with torch.save",
        )
    return _text(head)


def _text(head: bytes) -> tuple[str, str] | None:
    """A page or an answer that a site gave in place of the file."""
    if len(head) < len(b"error") or not TEXT.fullmatch(head):
        return None
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    shown = " ".join(start.decode("utf-8", "replace").split())[:SHOWN]
    if start[:1] == b"<":
        return "a web page (HTML or XML)", SIGN_IN
    if start[:1] == b"{":
        return f"JSON, a site's error or a config ({shown!r})", SIGN_IN
    return f"a text ({shown!r})", AGAIN

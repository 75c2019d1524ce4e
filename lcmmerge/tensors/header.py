"""The safetensors header: 8 bytes of length, then JSON, then the data. Nothing in it is believed unchecked.

Format: https://huggingface.co/docs/safetensors/index#format. A header that passes here names ranges that lie
inside the file, do not overlap, leave no hole, and have the size that shape and dtype ask for.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

from lcmmerge.errors import FormatError, NotFoundError
from lcmmerge.refs.files import open_regular
from lcmmerge.tensors.dtypes import DTYPES, DType
from lcmmerge.tensors.signatures import AGAIN, HEAD, LONGEST_HEADER, foreign

MAX_DIMENSIONS = 64  # no tensor has more, and a product of millions of numbers would take minutes
METADATA = "__metadata__"

Read = Callable[[int, int], bytes]  # offset, number of bytes


class Entry(NamedTuple):
    """A tensor in a file; ``offset`` is absolute."""

    name: str
    dtype: DType
    shape: tuple[int, ...]
    offset: int
    nbytes: int


def read_header(path: Path) -> tuple[list[Entry], dict[str, str]]:
    """The tensors in file order, and the metadata. Raises FormatError, NotFoundError."""
    try:
        with open_regular(path) as file:
            descriptor = file.fileno()
            size = os.fstat(descriptor).st_size
            return header_of(lambda offset, nbytes: os.pread(descriptor, nbytes, offset), size, path)
    except (FileNotFoundError, NotADirectoryError):
        raise NotFoundError(f"{path}: no such file", "check the path") from None
    except OSError as error:
        raise NotFoundError(f"{path}: cannot be read ({error.strerror})", "check its permissions") from None


def header_of(read: Read, size: int, path: Path) -> tuple[list[Entry], dict[str, str]]:
    """The same of ``size`` bytes, wherever they are. Raises FormatError."""
    head = read(0, min(8, size))
    length = int.from_bytes(head, "little")
    if len(head) < 8 or length > size - 8:
        if error := foreign(read(0, min(HEAD, size)), path):
            raise error
        raise _broken(path, "shorter than its header says: it is truncated, or not safetensors")
    if length > LONGEST_HEADER:
        raise _broken(path, f"a header of {length:,} bytes is over the format's {LONGEST_HEADER:,}")
    if length == 0 and (error := foreign(read(0, min(HEAD, size)), path)):
        raise error
    header = parse_header(read(8, length), path)
    metadata = _metadata(header.pop(METADATA, {}), path)
    entries = [_entry(name, value, 8 + length, path) for name, value in header.items()]
    entries.sort(key=lambda entry: (entry.offset, entry.nbytes, entry.name))
    _check_ranges(entries, 8 + length, size, path)
    return entries, metadata


def parse_header(text: bytes, path: Path) -> dict[str, Any]:
    """The header's JSON object. Duplicate names are refused: readers disagree about which one counts."""

    def unique(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key, value in pairs:
            if key in result:
                raise _broken(path, f"the name {key!r} stands twice in its header")
            result[key] = value
        return result

    try:
        header = json.loads(text.decode("utf-8"), object_pairs_hook=unique)
        json.dumps(header, ensure_ascii=False).encode("utf-8")  # a lone surrogate (\ud800) is no text
    except (ValueError, RecursionError):
        raise _broken(path, "its header is not JSON: the file is damaged or not safetensors") from None
    if not isinstance(header, dict):
        raise _broken(path, "its header is not a JSON object")
    return header


def _entry(name: str, value: object, data_start: int, path: Path) -> Entry:
    if not isinstance(value, Mapping) or not {"dtype", "shape", "data_offsets"} <= value.keys():
        raise _broken(path, f"the entry of {name!r} lacks dtype, shape or data_offsets")
    dtype = DTYPES.get(value["dtype"]) if isinstance(value["dtype"], str) else None
    if dtype is None:
        raise FormatError(
            f"{path}: {name!r} has the unknown dtype {value['dtype']!r}", f"known are {', '.join(DTYPES)}"
        )
    shape, offsets = value["shape"], value["data_offsets"]
    if not _naturals(shape) or not _naturals(offsets) or len(offsets) != 2 or len(shape) > MAX_DIMENSIONS:
        raise _broken(path, f"the entry of {name!r} has a shape or offsets that cannot be")
    begin, end = offsets
    if end - begin != prod(shape) * dtype.itemsize:
        raise _broken(path, f"{name!r} takes {end - begin:,} bytes, which its shape and dtype contradict")
    return Entry(name, dtype, tuple(shape), data_start + begin, end - begin)


def _naturals(value: object) -> bool:
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 2**63 for item in value)


def _check_ranges(entries: list[Entry], data_start: int, size: int, path: Path) -> None:
    position = data_start
    for name, _, _, offset, nbytes in entries:
        if offset + nbytes > size:
            raise _broken(path, f"{name!r} ends beyond the end of the file: it is truncated")
        if offset < position:
            raise _broken(path, f"{name!r} overlaps another tensor")
        if offset > position:
            raise _broken(path, f"there are {offset - position:,} unnamed bytes before {name!r}")
        position = offset + nbytes
    if position != size:
        raise _broken(path, f"there are {size - position:,} unnamed bytes at its end")


def _metadata(value: object, path: Path) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(item, str) for item in value.values()):
        raise _broken(path, "its __metadata__ is not a map of strings to strings")
    return value


def _broken(path: Path, what: str) -> FormatError:
    return FormatError(f"{path}: {what}", AGAIN)

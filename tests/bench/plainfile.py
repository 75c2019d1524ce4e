"""safetensors files by struct and json alone: independent of lcmmerge's reader and writer, which are measured here.

Format: https://huggingface.co/docs/safetensors/index#format.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

ITEMSIZE = {"I64": 8, "F32": 4, "F16": 2, "BF16": 2}
KIND = {"I64": "<i8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}
Layout = Mapping[str, tuple[str, tuple[int, ...]]]


@dataclass(frozen=True, slots=True)
class Plain:
    """An open file's tensors: name → (dtype, shape, absolute offset, number of bytes)."""

    path: Path
    entries: dict[str, tuple[str, tuple[int, ...], int, int]]

    def __contains__(self, name: str) -> bool:
        return name in self.entries

    def array(self, name: str, first: int = 0, rows: int | None = None) -> np.ndarray:
        """``rows`` rows (by default all) of a tensor, in its stored dtype and shape; BF16 as float32."""
        import numpy as np

        dtype, shape, offset, nbytes = self.entries[name]
        if rows is not None:
            stride = nbytes // shape[0]
            shape, offset, nbytes = (rows, *shape[1:]), offset + first * stride, rows * stride
        with self.path.open("rb") as file:
            file.seek(offset)
            numbers = np.frombuffer(file.read(nbytes), dtype=KIND[dtype]).reshape(shape)
        return (numbers.astype("<u4") << 16).view("<f4") if dtype == "BF16" else numbers


def open_plain(path: Path) -> Plain:
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    return Plain(
        path,
        {
            name: (entry["dtype"], tuple(entry["shape"]), 8 + length + entry["data_offsets"][0],
                   entry["data_offsets"][1] - entry["data_offsets"][0])
            for name, entry in header.items()
        },
    )  # fmt: skip


def in_file_order(layout: Layout) -> list[tuple[str, str, tuple[int, ...]]]:
    """(name, dtype, shape) as the reference writer orders them: wide dtypes first, then by name."""
    rows = [(name, dtype, shape) for name, (dtype, shape) in layout.items()]
    return sorted(rows, key=lambda row: (-ITEMSIZE[row[1]], row[0]))


def write_plain(path: Path, layout: Layout, data_of: Callable[[str, int], Iterator[memoryview]]) -> bool:
    """Stream a file tensor by tensor; ``data_of(name, nbytes)`` yields each one's bytes.

    A file that already begins with the same header and has the right size is kept. Returns whether it was written.
    """
    rows = in_file_order(layout)
    entries, position = {}, 0
    for name, dtype, shape in rows:
        end = position + prod(shape) * ITEMSIZE[dtype]
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [position, end]}
        position = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    head = struct.pack("<Q", len(text)) + text
    if path.exists() and path.stat().st_size == len(head) + position:
        with path.open("rb") as file:
            if file.read(len(head)) == head:
                return False
    temporary = path.with_suffix(".partial")
    with temporary.open("wb") as file:
        file.write(head)
        for name, dtype, shape in rows:
            for chunk in data_of(name, prod(shape) * ITEMSIZE[dtype]):
                file.write(chunk)
    temporary.rename(path)
    return True

"""The bytes of a safetensors file before its data are known: header, offsets, size.

safetensors' own writer orders metadata by a hash map, so that the same content gives different bytes; here
everything is ordered. The data begin on a page boundary (the format pads a header with spaces), so that blocks can
be written to the disk directly.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod

from lcmmerge.tensors.blockio import PAGE
from lcmmerge.tensors.dtypes import DType
from lcmmerge.tensors.header import METADATA


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A tensor to be written."""

    name: str
    dtype: DType
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class FileLayout:
    """Where each tensor of a file lies; ``offsets`` are absolute and follow the order of ``specs``."""

    specs: tuple[TensorSpec, ...]
    offsets: tuple[int, ...]
    data_start: int
    size: int
    padding: tuple[tuple[int, int], ...] = ()  # offset and length of what lies between tensors: nothing

    def header(self, metadata: Mapping[str, str]) -> bytes:
        """``data_start`` bytes. ``metadata`` must take as many bytes as that given to ``lay_out``."""
        text = _header_json(self.specs, metadata)
        length = self.data_start - 8
        assert len(text) <= length, "metadata grew after the file was laid out"
        return length.to_bytes(8, "little") + text + b" " * (length - len(text))


def lay_out(specs: Iterable[TensorSpec], metadata: Mapping[str, str]) -> FileLayout:
    """Lay tensors out one after another, in the given order, without holes, as the format demands."""
    ordered = tuple(specs)
    data_start = -(-(8 + len(_header_json(ordered, metadata))) // PAGE) * PAGE
    offsets, position = [], data_start
    for spec in ordered:
        offsets.append(position)
        position += spec.nbytes
    return FileLayout(ordered, tuple(offsets), data_start, position)


def _header_json(specs: Sequence[TensorSpec], metadata: Mapping[str, str]) -> bytes:
    header: dict[str, object] = {METADATA: dict(sorted(metadata.items()))} if metadata else {}
    position = 0
    for spec in specs:
        header[spec.name] = {
            "dtype": spec.dtype.name,
            "shape": list(spec.shape),
            "data_offsets": [position, position + spec.nbytes],
        }
        position += spec.nbytes
    return json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()

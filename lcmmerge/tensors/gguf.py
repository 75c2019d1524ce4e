"""The GGUF container, version 3, little endian: its header read and laid out. Nothing in it is believed unchecked.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. A header that passes here names ranges that lie
inside the file, do not overlap, begin on the file's alignment, and have the size that shape and type ask for. ggml's
reader also wants nothing but padding between tensors, and in the header's order: so they are laid out here.
"""

from __future__ import annotations

import os
import struct
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import NamedTuple

from lcmmerge.errors import FormatError, NotFoundError, OutputError
from lcmmerge.refs.files import open_regular
from lcmmerge.tensors.blockio import PAGE
from lcmmerge.tensors.header import Read
from lcmmerge.tensors.signatures import AGAIN, HEAD, LONGEST_HEADER, foreign

MAGIC = b"GGUF"
VERSION = 3
ALIGNMENT = 32  # of tensors, in bytes, where `general.alignment` names no other
MAX_DIMENSIONS = 5  # ggml has 4; ComfyUI-GGUF's files of Wan and HunyuanVideo hold a kernel of 5, as stored
LONGEST_NAME = 127  # bytes, by ComfyUI-GGUF and stable-diffusion.cpp; plain ggml takes 63
ARCHITECTURE = "general.architecture"  # the key by which readers tell families apart
ORIGINAL_SHAPE = "comfy.gguf.orig_shape."  # ComfyUI-GGUF: the shape of a tensor that is stored in another
FILLER = "lcmmerge.padding"
WINDOW = 1 << 20  # bytes that are read at once

Value = bool | int | float | str | tuple["Value", ...]


class GGMLType(NamedTuple):
    """How ggml stores a row's numbers: ``block`` of them take ``block_bytes`` together."""

    name: str
    number: int
    block: int
    block_bytes: int


TYPES = {
    name: GGMLType(name, number, block, block_bytes)
    for name, number, block, block_bytes in (
        ("F32", 0, 1, 4), ("F16", 1, 1, 2), ("BF16", 30, 1, 2), ("F64", 28, 1, 8),
        ("I8", 24, 1, 1), ("I16", 25, 1, 2), ("I32", 26, 1, 4), ("I64", 27, 1, 8),
        ("Q4_0", 2, 32, 18), ("Q4_1", 3, 32, 20), ("Q5_0", 6, 32, 22), ("Q5_1", 7, 32, 24),
        ("Q8_0", 8, 32, 34), ("Q8_1", 9, 32, 40), ("Q1_0", 41, 128, 18),
        ("Q2_K", 10, 256, 84), ("Q3_K", 11, 256, 110), ("Q4_K", 12, 256, 144), ("Q5_K", 13, 256, 176),
        ("Q6_K", 14, 256, 210), ("Q8_K", 15, 256, 292),
        ("IQ1_S", 19, 256, 50), ("IQ1_M", 29, 256, 56), ("IQ2_XXS", 16, 256, 66), ("IQ2_XS", 17, 256, 74),
        ("IQ2_S", 22, 256, 82), ("IQ3_XXS", 18, 256, 98), ("IQ3_S", 21, 256, 110), ("IQ4_NL", 20, 32, 18),
        ("IQ4_XS", 23, 256, 136), ("TQ1_0", 34, 256, 54), ("TQ2_0", 35, 256, 66),
        ("MXFP4", 39, 32, 17), ("NVFP4", 40, 64, 36),
    )
}  # fmt: skip
_BY_NUMBER = {kind.number: kind for kind in TYPES.values()}
# `general.file_type` of a file that is mostly of a type, by llama.cpp's llama_ftype.
FILE_TYPES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "Q5_0": 8, "Q5_1": 9, "BF16": 32}

# The types of metadata's values.
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_UINT32, _INT32, _STRING, _ARRAY = 4, 5, 8, 9


class GGUFEntry(NamedTuple):
    """A tensor in a file; ``type`` is ggml's name of it, ``offset`` is absolute.

    ``shape`` is in torch's order, and the original one where the file says that the tensor was reshaped: its rows then
    need not be whole blocks, but its numbers lie in their order.
    """

    name: str
    type: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


def read_gguf(path: Path) -> tuple[list[GGUFEntry], dict[str, Value]]:
    """The tensors in file order, and the metadata. Raises FormatError, NotFoundError."""
    try:
        with open_regular(path) as file:
            descriptor = file.fileno()
            size = os.fstat(descriptor).st_size
            return gguf_of(lambda offset, nbytes: os.pread(descriptor, nbytes, offset), size, path)
    except (FileNotFoundError, NotADirectoryError):
        raise NotFoundError(f"{path}: no such file", "check the path") from None
    except OSError as error:
        raise NotFoundError(f"{path}: cannot be read ({error.strerror})", "check its permissions") from None


def gguf_of(read: Read, size: int, path: Path) -> tuple[list[GGUFEntry], dict[str, Value]]:
    """The same of ``size`` bytes, wherever they are. Raises FormatError."""
    header = _Header(read, size, path)
    _check_version(read(0, min(HEAD, size)), path)
    header.take(8)
    tensors, keys = header.count(24), header.count(13)
    metadata: dict[str, Value] = {}
    for _ in range(keys):
        key = header.text()
        if key in metadata:
            raise _broken(path, f"the key {key!r} stands twice in its metadata")
        metadata[key] = header.value(header.integer())
    _refuse_parts(metadata, path)
    alignment = _alignment(metadata, path)
    entries = [header.entry() for _ in range(tensors)]
    data_start = _pad(header.position, alignment)
    entries = [_placed(entry, data_start, alignment, metadata, path) for entry in entries]
    entries.sort(key=lambda entry: (entry.offset, entry.nbytes, entry.name))
    _check_ranges(entries, size, path)
    return entries, metadata


class _Header:
    """What is read of a file from its beginning on; a length in it counts only as far as the file goes."""

    def __init__(self, read: Read, size: int, path: Path) -> None:
        self.position = 0
        self._read, self._size, self._path = read, size, path
        self._window, self._start = b"", 0

    def take(self, nbytes: int) -> bytes:
        end = self.position + nbytes
        if end > self._size:
            raise _broken(self._path, "shorter than its header says: it is truncated")
        if end > LONGEST_HEADER:
            raise _broken(self._path, f"its header is over {LONGEST_HEADER:,} bytes long")
        if end > self._start + len(self._window):
            self._start = self.position
            self._window = self._read(self.position, min(max(nbytes, WINDOW), self._size - self.position))
            if len(self._window) < nbytes:
                raise _broken(self._path, "it became shorter while it was read")
        begin = self.position - self._start
        self.position = end
        return self._window[begin : begin + nbytes]

    def integer(self) -> int:
        return int.from_bytes(self.take(4), "little")

    def long(self) -> int:
        return int.from_bytes(self.take(8), "little")

    def count(self, least: int) -> int:
        """How many of what takes at least ``least`` bytes each follow."""
        number = self.long()
        if number * least > self._size - self.position:
            raise _broken(self._path, "shorter than its header says: it is truncated")
        return number

    def text(self) -> str:
        try:
            return self.take(self.long()).decode("utf-8")
        except UnicodeDecodeError:
            raise _broken(self._path, "a text in its header is not UTF-8") from None

    def value(self, kind: int) -> Value:
        """Of metadata."""
        if kind == _STRING:
            return self.text()
        if kind == _ARRAY:
            return self._array()
        return self._scalars(kind, 1)[0]

    def _array(self) -> tuple[Value, ...]:
        kind = self.integer()
        if kind == _STRING:
            return tuple(self.text() for _ in range(self.count(8)))
        if kind == _ARRAY:  # which ggml does not read either
            raise _broken(self._path, "its metadata has an array of arrays")
        return self._scalars(kind, self.long())

    def _scalars(self, kind: int, number: int) -> tuple[Value, ...]:
        if kind not in _SCALARS:
            raise _broken(self._path, f"its metadata has a value of the unknown type {kind}")
        nbytes = number * struct.calcsize(f"<{_SCALARS[kind]}")
        return struct.unpack(f"<{number}{_SCALARS[kind]}", self.take(nbytes))

    def entry(self) -> GGUFEntry:
        """Of the next tensor, its offset from where the data begin."""
        name = self.text()
        dimensions = self.integer()
        if dimensions > MAX_DIMENSIONS:
            raise _broken(self._path, f"{name!r} has {dimensions:,} dimensions")
        shape = tuple(self.long() for _ in range(dimensions))[::-1]
        number = self.integer()
        if number not in _BY_NUMBER:
            known = ", ".join(TYPES)
            raise FormatError(f"{self._path}: {name!r} has the unknown type {number}", f"known are {known}")
        kind = _BY_NUMBER[number]
        if prod(max(length, 1) for length in shape) >= 2**63:
            raise _broken(self._path, f"{name!r} has a shape that cannot be")
        if (shape[-1] if shape else 1) % kind.block:
            raise _broken(self._path, f"{name!r} has rows that are not whole blocks of {kind.name}")
        return GGUFEntry(name, kind.name, shape, self.long(), prod(shape) // kind.block * kind.block_bytes)


def _check_version(head: bytes, path: Path) -> None:
    if head[:4] != MAGIC:
        raise foreign(head, path) or _broken(path, "is not GGUF")
    version = int.from_bytes(head[4:8], "little")
    if len(head) < 8:
        raise _broken(path, "shorter than its header says: it is truncated")
    if version == VERSION << 24:
        raise FormatError(f"{path}: is GGUF in big-endian order, for mainframes", "take the little-endian file")
    if version in (1, 2):
        raise FormatError(
            f"{path}: is GGUF of version {version}, from 2023", "convert it with a current llama.cpp or gguf program"
        )
    if version != VERSION:
        raise FormatError(f"{path}: is GGUF of the unknown version {version:,}", f"known is version {VERSION}")


def _refuse_parts(metadata: Mapping[str, Value], path: Path) -> None:
    count = metadata.get("split.count", 0)
    if isinstance(count, int) and count > 1:
        raise FormatError(f"{path}: is one of {count:,} parts of a model", "join them with `llama-gguf-split --merge`")


def _alignment(metadata: Mapping[str, Value], path: Path) -> int:
    alignment = metadata.get("general.alignment", ALIGNMENT)
    if type(alignment) is not int or alignment <= 0 or alignment & (alignment - 1):
        raise _broken(path, "its general.alignment is not a power of two")
    return alignment


def _placed(
    entry: GGUFEntry, data_start: int, alignment: int, metadata: Mapping[str, Value], path: Path
) -> GGUFEntry:
    """With its absolute offset and its original shape."""
    if entry.offset % alignment:
        raise _broken(path, f"{entry.name!r} begins off the file's alignment of {alignment:,}")
    original = metadata.get(ORIGINAL_SHAPE + entry.name, entry.shape)
    lengths = original if isinstance(original, tuple) else (-1,)
    shape = tuple(length for length in lengths if type(length) is int and length >= 0)
    if len(shape) != len(lengths) or len(shape) > MAX_DIMENSIONS or prod(shape) != prod(entry.shape):
        raise _broken(path, f"{entry.name!r} has an original shape that cannot be")
    return entry._replace(offset=data_start + entry.offset, shape=shape)


def _check_ranges(entries: Sequence[GGUFEntry], size: int, path: Path) -> None:
    position, names = 0, set()
    for name, _, _, offset, nbytes in entries:
        if name in names:
            raise _broken(path, f"the name {name!r} stands twice in its header")
        if offset + nbytes > size:
            raise _broken(path, f"{name!r} ends beyond the end of the file: it is truncated")
        if offset < position:
            raise _broken(path, f"{name!r} overlaps another tensor")
        position = offset + nbytes
        names.add(name)


def _broken(path: Path, what: str) -> FormatError:
    return FormatError(f"{path}: {what}", AGAIN)


def _pad(offset: int, alignment: int) -> int:
    return -(-offset // alignment) * alignment


@dataclass(frozen=True, slots=True)
class GGUFSpec:
    """A tensor to be written; ``shape`` is in torch's order.

    ``stored`` is the shape in the file: where the last dimension is not whole blocks, [rows, columns], and the metadata
    have the original one for ComfyUI-GGUF and ``read_gguf``.
    """

    name: str
    type: GGMLType
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return prod(self.shape) // self.type.block * self.type.block_bytes

    @property
    def stored(self) -> tuple[int, ...]:
        whole = not self.shape or self.shape[-1] % self.type.block == 0
        return self.shape if whole else (self.shape[0], prod(self.shape[1:]))


@dataclass(frozen=True, slots=True)
class GGUFLayout:
    """Where each tensor of a GGUF file lies, as in ``FileLayout``; between them is ``padding`` of zeros.

    ``offsets`` are absolute and follow the order of ``specs``. The data begin on a page boundary: the metadata's last
    text is as long as that takes. ``size`` counts the padding behind the last tensor, which ggml reads too.
    """

    specs: tuple[GGUFSpec, ...]
    offsets: tuple[int, ...]
    data_start: int
    size: int

    @property
    def padding(self) -> tuple[tuple[int, int], ...]:
        """Offset and number of bytes of what lies behind each tensor, where there is any."""
        ends = [offset + spec.nbytes for offset, spec in zip(self.offsets, self.specs, strict=True)]
        nexts = (*self.offsets[1:], self.size)
        return tuple((end, after - end) for end, after in zip(ends, nexts, strict=False) if after > end)

    def header(self, metadata: Mapping[str, str]) -> bytes:
        """``data_start`` bytes. ``metadata`` must take as many bytes as that given to ``lay_out_gguf``, or fewer."""
        filler = self.data_start - len(_header(self.specs, metadata, 0))
        assert filler >= 0, "metadata grew after the file was laid out"
        return _header(self.specs, metadata, filler)


def lay_out_gguf(specs: Iterable[GGUFSpec], metadata: Mapping[str, str]) -> GGUFLayout:
    """Lay tensors out one after another, in the given order, each on a multiple of ``ALIGNMENT``.

    ``metadata`` names the ``general.architecture``; what the format asks for beside it is added. Raises OutputError
    where a tensor is one that GGUF cannot hold.
    """
    ordered = tuple(specs)
    for spec in ordered:
        _check_spec(spec)
    data_start = _pad(len(_header(ordered, metadata, 0)), PAGE)
    offsets, position = [], data_start
    for spec in ordered:
        offsets.append(position)
        position = _pad(position + spec.nbytes, ALIGNMENT)
    return GGUFLayout(ordered, tuple(offsets), data_start, position)


def _check_spec(spec: GGUFSpec) -> None:
    if len(spec.name.encode()) > LONGEST_NAME:
        raise OutputError(f"{spec.name!r}: a name in GGUF has at most {LONGEST_NAME} bytes", "write safetensors")
    if len(spec.stored) > MAX_DIMENSIONS:
        raise OutputError(f"{spec.name!r}: a tensor in GGUF has up to {MAX_DIMENSIONS} dimensions", "write safetensors")
    if spec.stored and spec.stored[-1] % spec.type.block:
        raise OutputError(f"{spec.name!r}: its rows are not whole blocks of {spec.type.name}", "keep its own type")


def _header(specs: Sequence[GGUFSpec], metadata: Mapping[str, str], filler: int) -> bytes:
    values = {key: _typed(_STRING, _string(text)) for key, text in metadata.items()}
    values["general.quantization_version"] = _typed(_UINT32, struct.pack("<I", 2))
    values["general.file_type"] = _typed(_UINT32, struct.pack("<I", _file_type(specs)))
    for spec in specs:
        if spec.stored != spec.shape:
            lengths = struct.pack(f"<IQ{len(spec.shape)}i", _INT32, len(spec.shape), *spec.shape)
            values[ORIGINAL_SHAPE + spec.name] = _typed(_ARRAY, lengths)
    pairs = [*sorted(values.items()), (FILLER, _typed(_STRING, _string(" " * filler)))]
    lines = [MAGIC, struct.pack("<IQQ", VERSION, len(specs), len(pairs))]
    lines += [_string(key) + value for key, value in pairs]
    position = 0
    for spec in specs:
        dimensions = len(spec.stored)
        shape = struct.pack(f"<I{dimensions}Q", dimensions, *reversed(spec.stored))
        lines += [_string(spec.name), shape, struct.pack("<IQ", spec.type.number, position)]
        position = _pad(position + spec.nbytes, ALIGNMENT)
    return b"".join(lines)


def _file_type(specs: Sequence[GGUFSpec]) -> int:
    """Of the type that most bytes are of."""
    nbytes: Counter[str] = Counter()
    for spec in specs:
        nbytes[spec.type.name] += spec.nbytes
    known = [name for name, _ in nbytes.most_common() if name in FILE_TYPES]
    return FILE_TYPES[known[0]] if known else 0


def _string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _typed(kind: int, value: bytes) -> bytes:
    return struct.pack("<I", kind) + value

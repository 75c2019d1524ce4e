"""Where one tensor is stored."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

from lcmmerge.errors import FormatError
from lcmmerge.tensors.dtypes import DType, decode_scalar
from lcmmerge.tensors.encodings import MAIN, Encoding, plain

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """A tensor and the bytes of a file in which it lies, contiguous and little-endian.

    ``encoded``: how its numbers are stored where that is not one by one in ``dtype``, which then is what they become
    where nothing else is asked for. ``companions``: by the encoding's suffixes, the tensors that belong to it.
    """

    name: str
    dtype: DType
    shape: tuple[int, ...]
    path: Path
    offset: int
    nbytes: int
    encoded: Encoding | None = None
    companions: Mapping[str, TensorInfo] = field(default_factory=dict)

    @property
    def encoding(self) -> Encoding:
        return self.encoded or plain(self.dtype)

    @property
    def numel(self) -> int:
        return prod(self.shape)

    @property
    def stored(self) -> Iterator[TensorInfo]:
        """The tensors as the file's header has them."""
        if self.encoded is None:
            yield self
            return
        spec = self.encoded.specs(self.name, self.shape)[MAIN]
        yield TensorInfo(self.name, spec.dtype, spec.shape, self.path, self.offset, self.nbytes)
        yield from self.companions.values()

    def scalar(self) -> float:
        """The value of a tensor of one element."""
        return next(self.values())

    def values(self) -> Iterator[float]:
        """Of a small tensor, in its stored order, without torch."""
        data, step = self.data(), self.dtype.itemsize
        return (decode_scalar(self.dtype, data[begin : begin + step]) for begin in range(0, len(data), step))

    def data(self) -> bytes:
        """Its bytes, as they are stored."""
        return bytes(self._data())

    def _data(self) -> bytearray:
        data = bytearray(self.nbytes)
        with self.path.open("rb", buffering=0) as file:
            file.seek(self.offset)
            if file.readinto(data) != self.nbytes:
                raise FormatError(f"{self.path}: ended inside {self.name!r}", "it changed while it was read")
        return data

    def read(self) -> Tensor:
        """The whole tensor in its shape, in memory of its own: in the stored dtype, or decoded."""
        import torch

        if self.encoded:
            main, *companions = (info.read() for info in self.stored)
            beside = self.encoded.unpacked(dict(zip(self.companions, companions, strict=True)), self.shape)
            parts = {MAIN: main.reshape(len(main), -1), **beside}
            return self.encoded.decode(parts).reshape(self.shape)
        if not self.nbytes:
            return torch.empty(self.shape, dtype=self.dtype.torch)
        return torch.frombuffer(self._data(), dtype=torch.uint8).view(self.dtype.torch).reshape(self.shape)

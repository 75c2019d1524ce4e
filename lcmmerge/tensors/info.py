"""Where one tensor is stored."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lcmmerge.errors import FormatError
from lcmmerge.tensors.dtypes import DType, decode_scalar

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """A tensor and the bytes of a file in which it lies, contiguous and little-endian."""

    name: str
    dtype: DType
    shape: tuple[int, ...]
    path: Path
    offset: int
    nbytes: int

    @property
    def numel(self) -> int:
        return self.nbytes // self.dtype.itemsize

    def scalar(self) -> float:
        """The value of a tensor of one element."""
        return next(self.values())

    def values(self) -> Iterator[float]:
        """Of a small tensor, in its stored order, without torch."""
        with self.path.open("rb") as file:
            file.seek(self.offset)
            for _ in range(self.numel):
                yield decode_scalar(self.dtype, file.read(self.dtype.itemsize))

    def read(self) -> Tensor:
        """The whole tensor, in the stored dtype and shape, in memory of its own."""
        import torch

        data = bytearray(self.nbytes)
        with self.path.open("rb", buffering=0) as file:
            file.seek(self.offset)
            if file.readinto(data) != self.nbytes:
                raise FormatError(f"{self.path}: ended inside {self.name!r}", "it changed while it was read")
        if not data:
            return torch.empty(self.shape, dtype=self.dtype.torch)
        return torch.frombuffer(data, dtype=torch.uint8).view(self.dtype.torch).reshape(self.shape)

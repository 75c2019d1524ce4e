"""The bytes of one canonical parameter in some file."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Self

from lcmmerge.archs import Parameter
from lcmmerge.errors import IncompatibleError
from lcmmerge.tensors import DType, TensorInfo
from lcmmerge.tensors.encodings import Encoding

if TYPE_CHECKING:
    from torch import Tensor

Span = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Operand:
    """A parameter of the base, and where it lies in the tensor ``info``.

    ``spans``: offset in the file and number of bytes of what holds it, in its own order; several where its rows have
    another order there; of an encoded tensor without companions. ``shape`` is the canonical one; where ``transposed``,
    the file holds the parameter as [in, out]. ``constant``: its bytes, where no file has them.
    """

    name: str
    info: TensorInfo
    spans: tuple[Span, ...]
    shape: tuple[int, ...]
    transposed: bool = False
    constant: bytes | None = None

    @classmethod
    def of_parameter(cls, name: str, parameter: Parameter) -> Self:
        """Raises IncompatibleError where nothing tells which rows are its own."""
        info, view = parameter.info, parameter.slot.view
        if parameter.untold:
            raise IncompatibleError(
                f"{info.path}: {info.name!r} is q, k and v one below another, or head by head, and no header tells",
                "say it of a base by --qkv-rows stacked or interleaved, and give other models in one file",
            )
        count = info.shape[0] if info.shape else 1
        row = info.nbytes // count if count else 0
        spans = [(info.offset + begin * row, (end - begin) * row) for begin, end in view.rows(count)]
        return cls(name, info, tuple(spans), parameter.shape, view.transposed)

    @classmethod
    def of_tensor(cls, info: TensorInfo) -> Self:
        return cls(info.name, info, ((info.offset, info.nbytes),), info.shape)

    @classmethod
    def of_bytes(cls, name: str, content: bytes, like: TensorInfo) -> Self:
        """What no file has; ``like``: its dtype, its shape, and the file that it would be in."""
        return cls(name, like, (), like.shape, constant=content)

    @property
    def path(self) -> Path:
        return self.info.path

    @property
    def dtype(self) -> DType:
        return self.info.dtype

    @property
    def encoding(self) -> Encoding:
        return self.info.encoding

    @property
    def is_quantised(self) -> bool:
        """Whether its numbers are stored in less than 16 bits."""
        return self.info.encoded is not None or (self.dtype.floating and self.dtype.itemsize == 1)

    @property
    def numel(self) -> int:
        return prod(self.shape)

    @property
    def rows(self) -> int:
        """Length of the axis along which the parameter may be cut; a vector is cut by elements."""
        return self.shape[0] if self.shape else 1

    @property
    def columns(self) -> int:
        return prod(self.shape[1:])

    def cut(self, begin: int, nbytes: int) -> Iterator[Span]:
        """Where ``nbytes`` of it lie, from its byte ``begin`` on: offset and number of bytes of each piece."""
        for offset, size in self.spans:
            if begin < size and nbytes:
                taken = min(size - begin, nbytes)
                yield offset + begin, taken
                nbytes -= taken
            begin = max(begin - size, 0)

    @property
    def keeps_rows(self) -> bool:
        """Whether its rows are rows of the stored tensor."""
        return not self.transposed and self.columns == prod(self.info.shape[1:])

    def stored_rows(self, begin: int, end: int) -> Iterator[Span]:
        """Which rows of the stored tensor are its rows ``begin`` … ``end``, counted as that tensor's are."""
        row = self.encoding.row_bytes(prod(self.info.shape[1:]))
        for offset, nbytes in self.cut(begin * row, (end - begin) * row):
            first = (offset - self.info.offset) // row
            yield first, first + nbytes // row

    def read(self) -> Tensor:
        """The whole parameter in its canonical shape, in its stored dtype or decoded."""
        import torch

        stored = self.shape[::-1] if self.transposed else self.shape
        if self.info.encoded:
            whole = self.info.read()
            parts = [whole[begin:end] for begin, end in self.stored_rows(0, len(whole))]
        else:
            parts = [
                TensorInfo(self.name, self.dtype, (nbytes // self.dtype.itemsize,), self.path, offset, nbytes).read()
                for offset, nbytes in self.spans
            ]
        tensor = (parts[0] if len(parts) == 1 else torch.cat(parts)).reshape(stored)
        return tensor.t().contiguous() if self.transposed else tensor

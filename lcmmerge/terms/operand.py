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

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Operand:
    """A parameter of the base, and where it lies.

    ``spans``: offset and number of bytes of what holds it, in its own order; several where its rows have another
    order there. ``shape`` is the canonical one; where ``transposed``, the file holds the parameter as [in, out].
    ``constant``: its bytes, where no file has them.
    """

    name: str
    path: Path
    spans: tuple[tuple[int, int], ...]
    dtype: DType
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
        return cls(name, info.path, tuple(spans), info.dtype, parameter.shape, view.transposed)

    @classmethod
    def of_tensor(cls, info: TensorInfo) -> Self:
        return cls(info.name, info.path, ((info.offset, info.nbytes),), info.dtype, info.shape)

    @property
    def numel(self) -> int:
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.numel * self.dtype.itemsize

    @property
    def rows(self) -> int:
        """Length of the axis along which the parameter may be cut; a vector is cut by elements."""
        return self.shape[0] if self.shape else 1

    @property
    def columns(self) -> int:
        return prod(self.shape[1:])

    def cut(self, begin: int, nbytes: int) -> Iterator[tuple[int, int]]:
        """Where ``nbytes`` of it lie, from its byte ``begin`` on: offset and number of bytes of each piece."""
        for offset, size in self.spans:
            if begin < size and nbytes:
                taken = min(size - begin, nbytes)
                yield offset + begin, taken
                nbytes -= taken
            begin = max(begin - size, 0)

    def read(self) -> Tensor:
        """The whole parameter in its canonical shape and stored dtype."""
        stored = self.shape[::-1] if self.transposed else self.shape
        if len(self.spans) == 1:
            ((offset, nbytes),) = self.spans
            tensor = TensorInfo(self.name, self.dtype, stored, self.path, offset, nbytes).read()
        else:
            import torch

            flat = [
                TensorInfo(self.name, self.dtype, (nbytes // self.dtype.itemsize,), self.path, offset, nbytes).read()
                for offset, nbytes in self.spans
            ]
            tensor = torch.cat(flat).reshape(stored)
        return tensor.t().contiguous() if self.transposed else tensor

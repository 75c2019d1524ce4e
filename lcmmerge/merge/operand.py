"""The bytes of one canonical parameter in some file."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Self

from lcmmerge.archs import Parameter
from lcmmerge.tensors import DType, TensorInfo

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Operand:
    """A parameter of the base, and where it lies.

    ``shape`` is the canonical one; where ``transposed``, the file holds the parameter as [in, out].
    """

    name: str
    path: Path
    offset: int
    dtype: DType
    shape: tuple[int, ...]
    transposed: bool = False

    @classmethod
    def of_parameter(cls, name: str, parameter: Parameter) -> Self:
        info, slot = parameter.info, parameter.slot
        offset = info.offset + slot.part * (info.nbytes // slot.parts)
        return cls(name, info.path, offset, info.dtype, parameter.shape, slot.transposed)

    @classmethod
    def of_tensor(cls, info: TensorInfo) -> Self:
        return cls(info.name, info.path, info.offset, info.dtype, info.shape)

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

    def read(self) -> Tensor:
        """The whole parameter in its canonical shape and stored dtype."""
        stored = self.shape[::-1] if self.transposed else self.shape
        tensor = TensorInfo(self.name, self.dtype, stored, self.path, self.offset, self.nbytes).read()
        return tensor.t().contiguous() if self.transposed else tensor

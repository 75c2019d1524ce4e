"""A safetensors file that grows tensor by tensor: what will be in it need not be known before the first one."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from lcmmerge.tensors.blockio import output_error
from lcmmerge.tensors.dtypes import of_torch
from lcmmerge.tensors.layout import FileLayout, TensorSpec, lay_out

if TYPE_CHECKING:
    from torch import Tensor

# sha256 of the tensor bytes, None while it is unknown → metadata; it never takes more bytes than for None.
Describe = Callable[[str | None], Mapping[str, str]]


class TensorWriter:
    """Writes a safetensors file tensor by tensor.

    ``write`` tensors, then ``finish``.

    The header stands in front and is written last, in room for the tensors ``at_most``: those that will be written
    are among them, and no larger. Raises OutputError.
    """

    def __init__(self, path: Path, at_most: Iterable[TensorSpec], describe: Describe) -> None:
        self.path, self._describe = path, describe
        self._data_start = self._position = lay_out(at_most, describe(None)).data_start
        self._specs: list[TensorSpec] = []
        self._offsets: list[int] = []
        self._digest = hashlib.sha256()

    def __enter__(self) -> Self:
        try:
            self._file = self.path.open("xb", buffering=0)
            self._file.seek(self._data_start)
        except OSError as error:
            raise output_error(self.path, error) from None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._file.close()

    def write(self, name: str, tensor: Tensor) -> None:
        import torch

        spec = TensorSpec(name, of_torch(tensor.dtype), tuple(tensor.shape))
        data = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data
        self._digest.update(data)
        self._put(data)
        self._specs.append(spec)
        self._offsets.append(self._position)
        self._position += spec.nbytes

    def finish(self) -> str:
        """Write the header and make everything durable; the sha256 of the tensor bytes."""
        layout = FileLayout(tuple(self._specs), tuple(self._offsets), self._data_start, self._position)
        sha256 = self._digest.hexdigest()
        self._file.seek(0)
        self._put(memoryview(layout.header(self._describe(sha256))))
        os.fsync(self._file.fileno())
        return sha256

    def _put(self, data: memoryview) -> None:
        try:
            while data:
                data = data[self._file.write(data) :]
        except OSError as error:
            raise output_error(self.path, error) from None

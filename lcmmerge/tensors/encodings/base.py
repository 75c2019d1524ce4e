"""What an encoding is: a float32 matrix as stored bytes, in blocks along its rows, with scales in tensors beside it.

A tensor counts as a matrix of ``shape[0]`` rows and ``prod(shape[1:])`` columns. What is declared here tells a file's
layout from headers alone; torch is loaded by what computes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from types import MappingProxyType
from typing import TYPE_CHECKING

from lcmmerge.refs.weights import DENOISERS
from lcmmerge.tensors.dtypes import DType
from lcmmerge.tensors.layout import TensorSpec

if TYPE_CHECKING:
    import torch
    from torch import Generator, Tensor

Shape = tuple[int, ...]
Parts = Mapping[str, "Tensor"]  # MAIN, and each companion's suffix → some rows of what is stored
MAIN = ""
DENOISER = tuple(f"{name}." for name in DENOISERS)  # how canonical names of the network's parameters begin
SMALL = 16  # rows, or columns, below which a matrix gains nothing
LARGE, EVEN = 128, 32  # below which a GPU's kernels gain nothing, and what they want multiples of
_INNER = re.compile(
    r"(?:transformer(?:_2)?\.(?:\w*blocks|layers)(?:\.[a-z]\w*)?"
    r"|unet\.(?:(?:down|up)_blocks\.\d+|mid_block)\.attentions)\.\d+\.(.+)\.weight"
)


def matrices(name: str, shape: Shape) -> bool:
    """The denoiser's matrices, small ones left out; biases, norms, text encoders and the VAE keep their dtype."""
    large = len(shape) > 1 and min(_matrix(shape)) >= SMALL
    return large and name.startswith(DENOISER) and name.endswith(".weight")


def linears(name: str, shape: Shape) -> bool:
    """Large matrices inside the denoiser's numbered blocks, but for norms, modulations and convolutions.

    What stands before and behind the blocks keeps its dtype: embedders, refiners, heads. Of a U-Net's blocks these are
    the attentions' and their feed-forwards'.
    """
    large = len(shape) == 2 and min(shape) >= LARGE and not any(size % EVEN for size in shape)
    inner = _INNER.fullmatch(name)
    return large and inner is not None and "norm" not in inner[1] and "mod" not in inner[1]


def _matrix(shape: Shape) -> tuple[int, int]:
    """Rows and columns; a vector is a column."""
    return (shape[0] if shape else 1), prod(shape[1:])


def refuse(rows: Tensor, parts: Parts, generator: Generator | None, peak: float) -> None:
    """``encode`` of what is only read."""
    raise NotImplementedError


def as_they_are(parts: Parts, rows: int, columns: int) -> Parts:
    return parts


def no_metadata(names: Sequence[str]) -> Mapping[str, str]:
    return MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Companion:
    """A tensor that is stored beside an encoded one, such as its scales.

    ``suffix``: beside ``X.weight`` lies ``X.suffix``. ``shape``: of the encoded matrix's rows and columns; it begins
    with the rows, made whole ``granules`` of the encoding, at the latest when it is unpacked, unless it is ``shared``
    by all of them. ``constant``: its bytes, where they are the same for every tensor; it is shared then. ``zeros``:
    whether it may hold some.
    """

    suffix: str
    dtype: DType
    shape: Callable[[int, int], Shape]
    shared: bool = False
    constant: bytes | None = None
    zeros: bool = False

    def beside(self, name: str) -> str:
        """Its name beside the tensor of that name."""
        module, dot, _ = name.rpartition(".")
        return module + dot + self.suffix


@dataclass(frozen=True, slots=True)
class Scales:
    """The scales that error-aware rounding may choose: one for each ``group`` of a row's numbers (0: for all of them).

    ``encode``: as the encoding's own, and with each scale multiplied by the last argument's, [rows, groups]: by ones it
    gives the same bytes. ``factors``: what is tried beside 1.
    """

    encode: Callable[[Tensor, Parts, Generator | None, float, Tensor], None]
    factors: tuple[float, ...]
    group: int = 0


@dataclass(frozen=True, slots=True)
class Encoding:
    """How a tensor's numbers are stored: one by one in a ``dtype``, or in blocks of some of a row's.

    ``encode(rows, parts, generator, peak)`` fills ``parts``, of which MAIN is [rows, stored elements], with ``rows``
    [rows, columns] in float32, or float64 where the parameter is. Each number is rounded once: to nearest, ties to
    even, or where there is a ``generator``, stochastically. A merge refuses what is not finite, or above ``largest``.
    What companions share is the same from whichever rows it is filled.
    ``decode(parts)`` gives [rows, columns], in float32 or a dtype that holds the numbers exactly.

    ``dtype``: of the stored tensor, as a header names it. ``block``: elements of a row that take ``block_bytes``
    together (0: what the dtype takes). ``peaked``: ``encode`` needs ``peak``, the largest magnitude in the whole tensor
    (else it is NaN). ``granule``: rows that are encoded together; only a tensor's last ones may be fewer.
    ``takes(canonical name, shape)``: the parameters that are stored so; others keep their own dtype.
    ``metadata(stored names)``: what a file's header says of the tensors that are; ``form``: what ComfyUI's header, or
    its ``comfy_quant`` beside a layer, says of each. ``container``: the format of the files that hold them,
    ``safetensors`` or ``gguf``. ``read_only``: the name of one that is not written; what no term touches ``stays`` in
    it, or else must be decoded. ``unpack(companions, rows, columns)``: what ``decode`` takes, of a whole matrix's.
    ``scales``: what error-aware rounding chooses of; None where there is nothing.
    """

    title: str
    dtype: DType
    encode: Callable[[Tensor, Parts, Generator | None, float], None]
    decode: Callable[[Parts], Tensor]
    block: int = 1
    block_bytes: int = 0
    companions: tuple[Companion, ...] = ()
    peaked: bool = False
    granule: int = 1
    largest: float = 3.4028234663852886e38  # of float32
    takes: Callable[[str, Shape], bool] = matrices
    metadata: Callable[[Sequence[str]], Mapping[str, str]] = no_metadata
    form: Mapping[str, object] = field(default_factory=dict, hash=False)
    read_only: str = ""
    stays: bool = True
    unpack: Callable[[Parts, int, int], Parts] = as_they_are
    container: str = "safetensors"
    scales: Scales | None = None

    def row_bytes(self, columns: int) -> int:
        """What a row takes in the stored tensor; ``columns`` are a multiple of ``block``."""
        return columns // self.block * (self.block_bytes or self.block * self.dtype.itemsize)

    def stored_shape(self, shape: Shape) -> Shape:
        """Of the stored tensor: its own where each number is an element of it, else [rows, elements]."""
        if self.row_bytes(self.block) == self.block * self.dtype.itemsize:
            return shape
        return shape[0], self.row_bytes(_matrix(shape)[1]) // self.dtype.itemsize

    def shape_of(self, stored: Shape) -> Shape:
        """The encoded tensor's shape, from the stored one's: the other way round."""
        block = self.row_bytes(self.block)
        if block == self.block * self.dtype.itemsize:
            return stored
        return stored[0], prod(stored[1:]) * self.dtype.itemsize // block * self.block

    def specs(self, name: str, shape: Shape) -> Mapping[str, TensorSpec]:
        """MAIN, and each companion's suffix → the stored tensor."""
        rows, columns = _matrix(shape)
        specs = {MAIN: TensorSpec(name, self.dtype, self.stored_shape(shape))}
        for item in self.companions:
            specs[item.suffix] = TensorSpec(item.beside(name), item.dtype, item.shape(rows, columns))
        return specs

    def fits(self, shape: Shape) -> bool:
        """Rows are whole blocks, and what lies behind each part in a file is aligned to the widest of them."""
        if _matrix(shape)[1] % self.block:
            return False
        specs = self.specs("", shape).values()
        widest = max(spec.dtype.itemsize for spec in specs)
        return all(spec.nbytes % widest == 0 for spec in specs)

    def allocate(self, shape: Shape, device: str | torch.device = "cpu") -> dict[str, Tensor]:
        """Parts for ``encode`` to fill with the whole tensor."""
        import torch

        main = torch.empty(self.stored_shape(shape), dtype=self.dtype.torch, device=device)
        return {MAIN: main.view(_matrix(shape)[0], -1), **self.allocate_companions(shape, device)}

    def allocate_companions(self, shape: Shape, device: str | torch.device = "cpu") -> dict[str, Tensor]:
        """Those of a whole tensor; constant ones are filled already."""
        import torch

        specs = self.specs("", shape)
        parts = {}
        for item in self.companions:
            spec = specs[item.suffix]
            part = parts[item.suffix] = torch.empty(spec.shape, dtype=spec.dtype.torch, device=device)
            if item.constant is not None:
                part.view(torch.uint8).copy_(torch.frombuffer(bytearray(item.constant), dtype=torch.uint8))
        return parts

    def unpacked(self, parts: Parts, shape: Shape) -> Parts:
        """Companions of a tensor of that shape as ``decode`` takes them, of some rows once they are ``cut``."""
        return self.unpack(parts, *_matrix(shape))

    def constant(self, suffix: str) -> bytes:
        """The bytes of a companion that are the same for every tensor."""
        return next(item.constant for item in self.companions if item.suffix == suffix and item.constant is not None)

    def cut(self, parts: Parts, rows: slice) -> dict[str, Tensor]:
        """What is stored of some rows, from the first of a granule on."""
        padded = slice(rows.start, -(-rows.stop // self.granule) * self.granule)
        shared = {item.suffix for item in self.companions if item.shared or item.constant is not None}
        return {
            suffix: tensor if suffix in shared else tensor[rows if suffix == MAIN else padded]
            for suffix, tensor in parts.items()
        }

"""Each number by itself, in a dtype: the encodings that ``--dtype`` names."""

from __future__ import annotations

from functools import cache
from math import inf
from typing import TYPE_CHECKING

from lcmmerge.tensors.dtypes import DType
from lcmmerge.tensors.encodings.base import MAIN, Encoding, Parts, Shape

if TYPE_CHECKING:
    import torch
    from torch import Generator, Tensor

# The largest finite numbers: a cast to float8_e4m3fn saturates there, and others give infinity.
LARGEST = {
    "F64": 1.7976931348623157e308,
    "F32": 3.4028234663852886e38,
    "F16": 65504.0,
    "BF16": 3.3895313892515355e38,
    "F8_E4M3": 448.0,
    "F8_E5M2": 57344.0,
}


@cache
def plain(dtype: DType) -> Encoding:
    """The encoding that a cast to ``dtype`` is; it takes every tensor."""
    title = f"each number in {dtype.torch_name}"
    return Encoding(title, dtype, encode, decode, largest=LARGEST.get(dtype.name, inf), takes=every)


def every(name: str, shape: Shape) -> bool:
    return True


def encode(rows: Tensor, parts: Parts, generator: Generator | None, peak: float) -> None:
    stored = parts[MAIN]
    if generator is None or stored.dtype.itemsize >= 4:
        stored.copy_(rows)
    else:
        stored.copy_(stochastic(rows, stored.dtype, generator))


def decode(parts: Parts) -> Tensor:
    return parts[MAIN]


def stochastic(values: Tensor, dtype: torch.dtype, generator: Generator) -> Tensor:
    """Round float32 values to one of their two neighbours in ``dtype``, with P(the outer one) = the distance covered.

    Sign and magnitude are apart in every floating dtype, so the integer of the bits counts neighbours from zero out.
    """
    import torch

    integer = torch.int16 if dtype.itemsize == 2 else torch.uint8
    magnitude = values.abs()
    nearest = values.to(dtype)
    bits = nearest.view(integer)
    inner = torch.where(nearest.float().abs() > magnitude, bits - 1, bits)
    outer = inner + 1
    low, high = inner.view(dtype).float().abs(), outer.view(dtype).float().abs()
    draw = torch.rand(values.shape, generator=generator).to(values.device)
    return torch.where(draw * (high - low) < magnitude - low, outer, inner).view(dtype)

"""The element types of the safetensors format. Importing this loads no torch: headers need only names and sizes."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from math import ldexp, nan
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

NEAREST, STOCHASTIC, ERROR_AWARE = ROUNDINGS = "nearest", "stochastic", "error-aware"  # what --rounding may be
LARGEST = 3.4028234663852886e38  # of float32, in which merges are computed


@dataclass(frozen=True, slots=True)
class DType:
    """How a tensor's numbers are stored.

    ``name`` as in a safetensors header, ``torch_name`` as in ``torch.<torch_name>``, ``itemsize`` in bytes.
    """

    name: str
    torch_name: str
    itemsize: int
    floating: bool = False

    @property
    def torch(self) -> torch.dtype:
        import torch

        dtype: torch.dtype = getattr(torch, self.torch_name)
        return dtype


DTYPES: dict[str, DType] = {
    dtype.name: dtype
    for dtype in (
        DType("F64", "float64", 8, True),
        DType("F32", "float32", 4, True),
        DType("F16", "float16", 2, True),
        DType("BF16", "bfloat16", 2, True),
        DType("F8_E4M3", "float8_e4m3fn", 1, True),
        DType("F8_E5M2", "float8_e5m2", 1, True),
        DType("I64", "int64", 8),
        DType("I32", "int32", 4),
        DType("I16", "int16", 2),
        DType("I8", "int8", 1),
        DType("U64", "uint64", 8),
        DType("U32", "uint32", 4),
        DType("U16", "uint16", 2),
        DType("U8", "uint8", 1),
        DType("BOOL", "bool", 1),
    )
}

TORCH_DTYPES = {dtype.torch_name: dtype for dtype in DTYPES.values()}

# What `--dtype` offers, in the words that people use.
OUTPUT_DTYPES: dict[str, DType] = {
    "fp32": DTYPES["F32"],
    "fp16": DTYPES["F16"],
    "bf16": DTYPES["BF16"],
    "fp8_e4m3fn": DTYPES["F8_E4M3"],
    "fp8_e5m2": DTYPES["F8_E5M2"],
}

_FORMATS = {"F64": "d", "F32": "f", "F16": "e", "I64": "q", "I32": "i", "I16": "h", "I8": "b"}
_FORMATS |= {"U64": "Q", "U32": "I", "U16": "H", "U8": "B", "BOOL": "?"}


def of_torch(dtype: torch.dtype) -> DType:
    """Raises KeyError for one that safetensors files have no name for."""
    return TORCH_DTYPES[str(dtype).removeprefix("torch.")]


def decode_scalar(dtype: DType, data: bytes) -> float:
    """One element's value from its little-endian bytes (an adapter's ``alpha``), without torch."""
    if dtype.name == "BF16":  # the upper half of a float32
        dtype, data = DTYPES["F32"], b"\0\0" + data
    if dtype.name == "F8_E5M2":  # the upper half of a float16
        dtype, data = DTYPES["F16"], b"\0" + data
    if dtype.name == "F8_E4M3":
        return _decode_e4m3(data[0])
    return float(struct.unpack(f"<{_FORMATS[dtype.name]}", data)[0])


def _decode_e4m3(byte: int) -> float:
    """Sign, 4 bits of exponent with bias 7, 3 bits of mantissa; no infinity (arXiv 2209.05433)."""
    exponent, mantissa = byte >> 3 & 15, byte & 7
    if byte & 127 == 127:
        return nan
    magnitude = ldexp(mantissa, -9) if exponent == 0 else ldexp(8 + mantissa, exponent - 10)
    return -magnitude if byte >> 7 else magnitude

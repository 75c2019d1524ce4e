"""bitsandbytes' formats, which are only read: int8 with a scale per row, and codes of 4 bits in blocks.

Facts of https://github.com/bitsandbytes-foundation/bitsandbytes, functional.py and nn/modules.py. Blocks run along the
flattened matrix. What stands beside it: the largest magnitude of each block, the numbers that codes stand for, and JSON
with the matrix's shape. In double quantisation the magnitudes, less their mean, are codes in blocks themselves.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from math import gcd, inf, isfinite, prod
from typing import TYPE_CHECKING, Any

from lcmmerge.tensors.dtypes import DTYPES
from lcmmerge.tensors.encodings.base import MAIN, Companion, Encoding, Parts, Shape, refuse

if TYPE_CHECKING:
    from torch import Tensor

ROW_SCALE, ROW_FORMAT = "SCB", "weight_format"
BY_ROWS = b"\0"  # of a weight's formats the only one that is still written
ABSMAX, CODES = "weight.absmax", "weight.quant_map"
NESTED_ABSMAX, NESTED_CODES = "weight.nested_absmax", "weight.nested_quant_map"
STATE = "weight.quant_state.bitsandbytes__"
KINDS = ("nf4", "fp4")


def decode_int8(parts: Parts) -> Tensor:
    """In bitsandbytes' order, so that the numbers are its own."""
    return parts[MAIN].float().mul_(parts[ROW_SCALE][:, None]).mul_(1 / 127)


INT8 = Encoding(
    "int8 with a scale per row (bitsandbytes)",
    DTYPES["I8"],
    refuse,
    decode_int8,
    companions=(
        Companion(ROW_SCALE, DTYPES["F32"], lambda rows, columns: (rows,), zeros=True),
        Companion(ROW_FORMAT, DTYPES["U8"], lambda rows, columns: (), constant=BY_ROWS),
    ),
    largest=inf,
    read_only="bnb_int8",
    stays=False,
)


def four_bit(kind: str, state: Mapping[str, Any], content: bytes) -> tuple[Encoding, Shape]:
    """A layer's encoding and shape, by its JSON, of the bytes ``content``. Raises ValueError where that tells none."""
    shape, block = state.get("shape"), state.get("blocksize", 0)
    nested, offset = state.get("nested_blocksize", 0), state.get("nested_offset", 0.0)
    if kind not in KINDS or state.get("quant_type") != kind or not isinstance(offset, float) or not isfinite(offset):
        raise ValueError(kind)
    if not isinstance(shape, list):
        raise ValueError(shape)
    if not all(isinstance(size, int) and size > 0 for size in (*shape, block, nested or 1)):
        raise ValueError(shape, block, nested)
    blocks = -(-prod(shape) // block)
    parts = {ABSMAX: ("U8" if nested else "F32", blocks), CODES: ("F32", 16)}
    if nested:
        parts |= {NESTED_ABSMAX: ("F32", -(-blocks // nested)), NESTED_CODES: ("F32", 256)}
    encoding = Encoding(
        f"{kind} in blocks of {block} (bitsandbytes)",
        DTYPES["U8"],
        refuse,
        decode,
        block=2,
        block_bytes=1,
        companions=(
            *(
                Companion(suffix, DTYPES[dtype], partial(_length, length), suffix != ABSMAX, zeros=True)
                for suffix, (dtype, length) in parts.items()
            ),
            Companion(STATE + kind, DTYPES["U8"], partial(_length, len(content)), constant=content),
        ),
        largest=inf,
        read_only=f"bnb_{kind}",
        stays=False,
        unpack=partial(unpack, block, nested, offset),
    )
    return encoding, tuple(shape)


def _length(length: int, rows: int, columns: int) -> Shape:
    return (length,)


def unpack(block: int, nested: int, offset: float, parts: Parts, rows: int, columns: int) -> dict[str, Tensor]:
    """Magnitudes by rows, each for as many numbers as lie in both a row and a block; numbers by pairs of codes."""
    import torch

    absmax = parts[ABSMAX]
    if nested:
        scales = parts[NESTED_ABSMAX].repeat_interleave(nested)[: len(absmax)]
        absmax = parts[NESTED_CODES][absmax.int()].mul_(scales).add_(offset)
    common = gcd(block, columns)
    whole = absmax.repeat_interleave(block // common)[: rows * columns // common].view(rows, -1)
    return {ABSMAX: whole, CODES: torch.cartesian_prod(parts[CODES], parts[CODES])}


def decode(parts: Parts) -> Tensor:
    """Of each byte the upper half comes first."""
    rows, absmax = len(parts[MAIN]), parts[ABSMAX]
    numbers = parts[CODES][parts[MAIN].int()].view(rows, absmax.shape[1], -1)
    return numbers.mul_(absmax[:, :, None]).view(rows, -1)

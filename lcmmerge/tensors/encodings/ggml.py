"""ggml's types, as GGUF files hold them. Those of ``GGML`` are written and read, those of ``READ_ONLY`` only read.

A block of 32 numbers is a float16 scale, in Q4_1 and Q5_1 the least of them too, then their codes. As in ggml, these
are rounded for the scale before it is a float16, halves away from zero in Q8_0 and up in the others. Stochastic
rounding is for the scale that is stored. https://github.com/ggml-org/llama.cpp/wiki/Tensor-Encoding-Schemes
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from math import inf
from typing import TYPE_CHECKING

from lcmmerge.extras import check_installed
from lcmmerge.tensors.dtypes import DTYPES
from lcmmerge.tensors.encodings.base import MAIN, Encoding, Parts, Scales, linears, matrices, refuse
from lcmmerge.tensors.encodings.plain import plain
from lcmmerge.tensors.gguf import TYPES, GGMLType

if TYPE_CHECKING:
    import torch
    from torch import Generator, Tensor

Encode = Callable[["Tensor", Parts, "Generator | None", float], None]
Decode = Callable[[Parts], "Tensor"]
UNREAD = {"Q8_1", "Q8_K", "Q1_0"}  # the first two are in no file, but ggml's while it computes
FLOAT16 = 65504.0  # its largest number
BLOCK = 32
FACTORS = (1.12, 1.08, 1.04, 0.96, 0.92, 0.88, 0.84, 0.8)  # on scales
NIBBLES = 0x0F0F0F0F0F0F0F0F  # the lower halves of eight bytes
LOWEST = 0x0101010101010101
GATHER = 0x0102040810204080  # by which the lowest bits of eight bytes become the highest byte, the first one lowest


def encode_bytes(
    rows: Tensor, parts: Parts, generator: Generator | None, peak: float, factors: Tensor | None = None
) -> None:
    """Q8_0: codes from −127 to 127."""
    import torch

    blocks = rows.float().reshape(-1, BLOCK)
    scale = blocks.amax(1, keepdim=True).maximum(-blocks.amin(1, keepdim=True)).abs() / 127
    scale = scale if factors is None else scale * factors.view(-1, 1)
    stored = scale.half()
    if generator is None:
        scaled = _scaled(blocks, scale)
        scaled = scaled if factors is None else scaled.clamp_(-127, 127)
        codes = scaled.to(torch.int8)  # towards zero
        codes += scaled.frac_().mul_(2).to(torch.int8)
    else:
        codes = _stochastic(_scaled(blocks, stored.float()), generator).clamp_(-127, 127).to(torch.int8)
    out = parts[MAIN].view(-1, 2 + BLOCK)
    out[:, :2] = stored.view(torch.uint8)
    out[:, 2:] = codes.view(torch.uint8)


def decode_bytes(parts: Parts) -> Tensor:
    import torch

    blocks = parts[MAIN].reshape(-1, 2 + BLOCK)
    values = blocks[:, 2:].view(torch.int8).float().mul_(_float16(blocks[:, :2]))
    return values.view(len(parts[MAIN]), -1)


def encode_bits(
    bits: int, shifted: bool, rows: Tensor, parts: Parts, generator: Generator | None, peak: float,
    factors: Tensor | None = None,
) -> None:  # fmt: skip
    """Qn_1 (``shifted``): from the least number up. Qn_0: the number that is largest in magnitude has the code 0."""
    import torch

    blocks = rows.float().reshape(-1, BLOCK)
    low, high = blocks.amin(1, keepdim=True), blocks.amax(1, keepdim=True)
    most, zero = 2**bits - 1, 0 if shifted else 2 ** (bits - 1)
    scale = (high - low) / most if shifted else _outermost(blocks, low, high) / -zero
    if factors is not None:
        scale = scale * factors.view(-1, 1)
        low = low + (high - low) * ((1 - factors.view(-1, 1)) / 2)
    stored = torch.cat([scale, low], 1).half() if shifted else scale.half()
    if generator is None:
        scaled = _scaled(blocks, scale, low if shifted else None)
        codes = scaled.add_(zero + 0.5).to(torch.int8).clamp_(0, most)
    else:
        exact = stored.float()
        scaled = _scaled(blocks, exact[:, :1], exact[:, 1:] if shifted else None)
        codes = _stochastic(scaled, generator).add_(zero).clamp_(0, most).to(torch.int8)
    words = codes.view(torch.int64)
    fields = [stored.view(torch.uint8)]
    if bits == 5:
        fields.append(((words >> 4 & LOWEST) * GATHER >> 56).to(torch.uint8))
        words = words & NIBBLES
    fields.append((words[:, :2] | words[:, 2:] << 4).view(torch.uint8))
    torch.cat(fields, 1, out=parts[MAIN].view(len(blocks), -1))


def decode_bits(bits: int, shifted: bool, parts: Parts) -> Tensor:
    import torch

    head, tail = 4 if shifted else 2, BLOCK // 2
    blocks = parts[MAIN].reshape(-1, head + bits // 5 * 4 + tail)
    words = _as(torch.int64, blocks[:, -tail:])
    words = torch.cat([words & NIBBLES, words >> 4 & NIBBLES], 1)
    if bits == 5:
        numbers = torch.arange(256, device=words.device)[:, None] >> torch.arange(8, device=words.device)
        spread = ((numbers & 1) << 4).to(torch.uint8).view(torch.int64)[:, 0]
        words |= spread[blocks[:, head : head + 4].int()]
    codes = words.view(torch.int8)
    scale = _float16(blocks[:, :2])
    if shifted:
        values = codes.float().mul_(scale).add_(_float16(blocks[:, 2:4]))
    else:
        values = codes.sub_(2 ** (bits - 1)).float().mul_(scale)
    return values.view(len(parts[MAIN]), -1)


def _outermost(blocks: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """The number of each block that is largest in magnitude; of two such the first."""
    outermost = high.where(high > -low, low)
    tied = (high == -low)[:, 0]
    if tied.any():
        some = blocks[tied]
        outermost[tied] = some.gather(1, some.abs().argmax(1, keepdim=True))
    return outermost


def _scaled(blocks: Tensor, scale: Tensor, least: Tensor | None = None) -> Tensor:
    """(blocks − least) / scale; zeros where that is infinite."""
    inverse = 1 / scale
    inverse = inverse.where(inverse.isfinite(), 0)
    return blocks * inverse if least is None else (blocks - least).mul_(inverse)


def _stochastic(values: Tensor, generator: Generator) -> Tensor:
    import torch

    below = values.floor()
    draw = torch.rand(values.shape, generator=generator).to(values.device)
    return below + (draw < values - below)


def _float16(stored: Tensor) -> Tensor:
    import torch

    return _as(torch.float16, stored).float()


def _as(dtype: torch.dtype, stored: Tensor) -> Tensor:
    """A copy, as a view wants bytes that are aligned."""
    import torch

    return stored.clone(memory_format=torch.contiguous_format).view(dtype)


def decode_by_library(name: str, parts: Parts) -> Tensor:
    """By the gguf package. Raises LcmMergeError where it is not installed."""
    check_installed("gguf")
    import torch
    from gguf import GGMLQuantizationType, dequantize

    return torch.from_numpy(dequantize(parts[MAIN].cpu().numpy(), GGMLQuantizationType[name]))


def _unquantised(name: str) -> Encoding:
    simple = plain(DTYPES[name])
    return replace(simple, title=f"GGUF's {name}: {simple.title}", takes=matrices, container="gguf")


def _blocks(
    name: str, encode: Encode, decode: Decode, largest: float, *, scales: Scales | None = None, read_only: str = ""
) -> Encoding:
    _, _, block, block_bytes = TYPES[name]
    title = f"GGUF's {name}: blocks of {block}, {block_bytes * 8 / block:g} bits a number"
    return Encoding(
        title, DTYPES["U8"], encode, decode, block, block_bytes, largest=largest, takes=linears, container="gguf",
        scales=scales, read_only=read_only,
    )  # fmt: skip


def _bits(name: str, bits: int, shifted: bool) -> Encoding:
    largest = FLOAT16 if shifted else FLOAT16 * 2 ** (bits - 1)
    encode, decode = partial(encode_bits, bits, shifted), partial(decode_bits, bits, shifted)
    return _blocks(name, encode, decode, largest, scales=Scales(encode, FACTORS, BLOCK))


# By ggml's name in lower case.
GGML = {
    "f32": _unquantised("F32"),
    "f16": _unquantised("F16"),
    "bf16": _unquantised("BF16"),
    "q8_0": _blocks(
        "Q8_0", encode_bytes, decode_bytes, FLOAT16 * 127, scales=Scales(encode_bytes, FACTORS, BLOCK)
    ),
    "q5_1": _bits("Q5_1", 5, shifted=True),
    "q5_0": _bits("Q5_0", 5, shifted=False),
    "q4_1": _bits("Q4_1", 4, shifted=True),
    "q4_0": _bits("Q4_0", 4, shifted=False),
}
READ_ONLY = {
    name.lower(): _blocks(name, refuse, partial(decode_by_library, name), inf, read_only=f"gguf:{name.lower()}")
    for name, kind in TYPES.items()
    if kind.block > 1 and name.lower() not in GGML and name not in UNREAD
}


def type_of(encoding: Encoding) -> GGMLType | None:
    """The type of GGUF that an encoding is, or a dtype; None where GGUF has none."""
    own = next((name for name, each in (GGML | READ_ONLY).items() if each == encoding), None)
    return TYPES.get((own or encoding.dtype.name).upper()) if own or encoding == plain(encoding.dtype) else None

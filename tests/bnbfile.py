"""Layers as bitsandbytes stores them, from tables: ``test_bnb`` compares them with its own."""

from __future__ import annotations

import json
from dataclasses import dataclass

import torch
from torch import Tensor

NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
FP4 = tuple(sign * number / 12 for sign in (1, -1) for number in (0, 0.0625, 8, 12, 4, 6, 2, 3))
CODES = {"nf4": NF4, "fp4": FP4}
NESTED = 256


@dataclass(frozen=True)
class Stored:
    """``tensors``: by what stands behind a module's name. ``numbers``: what they stand for, in float32."""

    tensors: dict[str, Tensor]
    numbers: Tensor


def four_bit(weight: Tensor, kind: str = "nf4", *, nested: bool = True, block: int = 64) -> Stored:
    flat, codes = weight.float().flatten(), torch.tensor(CODES[kind])
    blocks = torch.arange(len(flat)) // block
    absmax = torch.zeros(int(blocks[-1]) + 1).scatter_reduce(0, blocks, flat.abs(), "amax")
    number = ((flat / absmax[blocks].clamp(min=1e-38))[:, None] - codes).abs().argmin(1).to(torch.uint8)
    state: dict[str, object] = {"quant_type": kind, "blocksize": block, "dtype": "float32", "shape": [*weight.shape]}
    tensors = {"weight": (number[0::2] << 4 | number[1::2])[:, None], "weight.quant_map": codes}
    if nested:
        offset, levels = absmax.mean(), torch.linspace(-1, 1, 256)
        groups = torch.arange(len(absmax)) // NESTED
        scales = torch.zeros(int(groups[-1]) + 1).scatter_reduce(0, groups, (absmax - offset).abs(), "amax")
        level = (((absmax - offset) / scales[groups])[:, None] - levels).abs().argmin(1).to(torch.uint8)
        tensors |= {"weight.absmax": level, "weight.nested_absmax": scales, "weight.nested_quant_map": levels}
        state |= {"nested_blocksize": NESTED, "nested_dtype": "float32", "nested_offset": offset.item()}
        absmax = levels[level.int()] * scales[groups] + offset
    else:
        tensors["weight.absmax"] = absmax
    numbers = (codes[number.int()] * absmax[blocks]).view(weight.shape)
    told = torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8)
    return Stored(tensors | {f"weight.quant_state.bitsandbytes__{kind}": told}, numbers)


def int8(weight: Tensor) -> Stored:
    absmax = weight.float().abs().amax(1)
    codes = (weight.float() * (127 / absmax)[:, None]).round().to(torch.int8)
    tensors = {"weight": codes, "SCB": absmax, "weight_format": torch.zeros((), dtype=torch.uint8)}
    return Stored(tensors, codes * absmax[:, None] * (1 / 127))


def layer(weight: Tensor, kind: str) -> Stored:
    """``kind``: the encoding's name."""
    return int8(weight) if kind == "bnb_int8" else four_bit(weight, kind.removeprefix("bnb_"))

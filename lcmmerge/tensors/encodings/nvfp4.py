"""4 bits in groups of 16 with an 8-bit scale each, and one for the tensor: NVIDIA's NVFP4, as ComfyUI stores it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lcmmerge.tensors.dtypes import DTYPES
from lcmmerge.tensors.encodings.base import MAIN, Companion, Encoding, Parts, Scales, linears
from lcmmerge.tensors.encodings.comfy import (
    ROWS,
    SCALE,
    blocked_shape,
    described,
    read_blocked,
    tensor_scale,
    write_blocked,
)

if TYPE_CHECKING:
    from torch import Generator, Tensor

GROUP = 16
TENSOR_SCALE = "weight_scale_2"
LARGEST, LARGEST_SCALE = 6.0, 448.0
NUMBERS = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)  # of a code's lower three bits; the fourth is the sign
FACTORS = (1.5, 1.35, 1.2, 1.1, 0.93, 0.86, 0.79)  # on a group's scale; by 1.5 the largest number is a 4
FORM = {"format": "nvfp4"}


def encode(
    rows: Tensor, parts: Parts, generator: Generator | None, peak: float, factors: Tensor | None = None
) -> None:
    import torch

    groups = rows.float().view(len(rows), -1, GROUP)
    whole = tensor_scale(peak, LARGEST_SCALE * LARGEST)
    scales = groups.abs().amax(2) / LARGEST / whole
    scales = (scales if factors is None else scales * factors).clamp_(max=LARGEST_SCALE).to(torch.float8_e4m3fn)
    parts[TENSOR_SCALE].copy_(whole)
    write_blocked(scales, parts[SCALE])
    total = whole * scales.float()
    zero = total == 0
    scaled = (groups / total.masked_fill_(zero, 1)[:, :, None]).view(rows.shape)
    codes = _codes(scaled.abs(), generator).add_(torch.signbit(scaled), alpha=8)
    codes.view(groups.shape).mul_((~zero).float()[:, :, None])
    parts[MAIN].copy_(codes[:, 1::2].add(codes[:, 0::2], alpha=16))


def _codes(magnitudes: Tensor, generator: Generator | None) -> Tensor:
    """Of the nearest numbers, ties to even codes; with a generator, of one of the two that are beside.

    Between its numbers a code grows evenly: by 2 for each 1 up to 2, then by 1, and from 4 on by half.
    """
    import torch

    pieces = ((2.0, 0), (1.0, 2), (0.5, 4))
    if generator is not None:
        draw = torch.rand(magnitudes.shape, generator=generator).to(magnitudes.device)
        lines = [magnitudes * slope + start for slope, start in pieces]
        codes = torch.minimum(torch.minimum(*lines[:2]), lines[2]).add_(draw).floor_()
    else:
        lines = [(magnitudes * slope).round_().add_(start) for slope, start in pieces]
        codes = torch.minimum(torch.minimum(*lines[:2]), lines[2])
    return codes.clamp_(max=len(NUMBERS) - 1)


def decode(parts: Parts) -> Tensor:
    import torch

    codes = torch.stack([parts[MAIN] >> 4, parts[MAIN] & 15], 2).int()
    rows = len(codes)
    numbers = torch.tensor([*NUMBERS, *(-number for number in NUMBERS)], device=codes.device)[codes]
    groups = numbers.view(rows, -1, GROUP)
    scales = parts[TENSOR_SCALE] * read_blocked(parts[SCALE], rows, groups.shape[1]).float()
    return (groups * scales[:, :, None]).view(rows, -1)


ENCODING = Encoding(
    "4-bit floats in groups of 16 with a float8_e4m3fn each (ComfyUI, NVFP4)",
    DTYPES["U8"],
    encode,
    decode,
    block=GROUP,
    block_bytes=GROUP // 2,
    companions=(
        Companion(SCALE, DTYPES["F8_E4M3"], blocked_shape(GROUP)),
        Companion(TENSOR_SCALE, DTYPES["F32"], lambda rows, columns: (), shared=True),
        described(FORM),
    ),
    peaked=True,
    granule=ROWS,
    takes=linears,
    form=FORM,
    scales=Scales(encode, FACTORS, GROUP),
)

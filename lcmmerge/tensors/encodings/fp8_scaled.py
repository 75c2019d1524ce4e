"""8 bits with a scale for each tensor: what ComfyUI calls float8_e4m3fn, and files ``fp8_scaled``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lcmmerge.tensors.dtypes import DTYPES
from lcmmerge.tensors.encodings.base import MAIN, Companion, Encoding, Parts, linears
from lcmmerge.tensors.encodings.comfy import SCALE, described, tensor_scale
from lcmmerge.tensors.encodings.plain import encode as cast

if TYPE_CHECKING:
    from torch import Generator, Tensor

LARGEST = 448.0
FORM = {"format": "float8_e4m3fn"}


def encode(rows: Tensor, parts: Parts, generator: Generator | None, peak: float) -> None:
    scale = tensor_scale(peak, LARGEST)
    parts[SCALE].copy_(scale)
    scaled = rows * (1 / scale).to(rows.dtype)
    cast(scaled.clamp_(-LARGEST, LARGEST), parts, generator, LARGEST)


def decode(parts: Parts) -> Tensor:
    return parts[MAIN].float() * parts[SCALE]


ENCODING = Encoding(
    "float8_e4m3fn with a scale per tensor (ComfyUI)",
    DTYPES["F8_E4M3"],
    encode,
    decode,
    companions=(Companion(SCALE, DTYPES["F32"], lambda rows, columns: (), shared=True), described(FORM)),
    peaked=True,
    takes=linears,
    form=FORM,
)

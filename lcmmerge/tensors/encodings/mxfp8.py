"""8 bits in groups of 32 with a power of two each, OCP's MXFP8, as ComfyUI stores it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lcmmerge.tensors.dtypes import DTYPES
from lcmmerge.tensors.encodings.base import MAIN, Companion, Encoding, Parts, linears
from lcmmerge.tensors.encodings.comfy import ROWS, SCALE, blocked_shape, described, read_blocked, write_blocked
from lcmmerge.tensors.encodings.plain import encode as cast

if TYPE_CHECKING:
    from torch import Generator, Tensor

GROUP = 32
LARGEST = 448.0  # of float8_e4m3fn
BIAS = 127  # of a scale's exponent, which is all that is stored of it
FORM = {"format": "mxfp8"}


def encode(rows: Tensor, parts: Parts, generator: Generator | None, peak: float) -> None:
    import torch

    groups = rows.float().view(len(rows), -1, GROUP)
    largest = groups.abs().amax(2)
    # The least power of two at which the largest fits; a group of zeros has the exponent 0, which stands for zero.
    exponents = torch.log2(largest / LARGEST).ceil_().add_(BIAS).clamp_(1, 2 * BIAS).masked_fill_(largest == 0, 0)
    write_blocked(exponents.to(torch.uint8), parts[SCALE])
    # Powers of two have exact reciprocals: the product is the quotient.
    scaled = groups * torch.exp2(BIAS - exponents)[:, :, None]
    cast(scaled.clamp_(-LARGEST, LARGEST).view(rows.shape), parts, generator, LARGEST)


def decode(parts: Parts) -> Tensor:
    import torch

    rows, columns = parts[MAIN].shape
    exponents = read_blocked(parts[SCALE], rows, columns // GROUP).int()
    scales = (exponents << 23).view(torch.float32)  # where float32 has its exponent
    return (parts[MAIN].float().view(rows, -1, GROUP) * scales[:, :, None]).view(rows, columns)


ENCODING = Encoding(
    "float8_e4m3fn in groups of 32 with a power of two each (ComfyUI, MXFP8)",
    DTYPES["F8_E4M3"],
    encode,
    decode,
    block=GROUP,
    companions=(Companion(SCALE, DTYPES["U8"], blocked_shape(GROUP)), described(FORM)),
    granule=ROWS,
    takes=linears,
    form=FORM,
)

"""8-bit integers with a scale for each row, of weights that are rotated: ComfyUI's int8_tensorwise with ``convrot``.

Groups of 256 inputs are multiplied by a regular Hadamard matrix, which spreads what is large among them: the Kronecker
product of four times [[1, 1, 1, -1], [1, 1, -1, 1], [1, -1, 1, 1], [-1, 1, 1, 1]], over 16. It is its own inverse.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lcmmerge.tensors.dtypes import DTYPES
from lcmmerge.tensors.encodings.base import MAIN, Companion, Encoding, Parts, Scales, linears
from lcmmerge.tensors.encodings.comfy import SCALE, described

if TYPE_CHECKING:
    from torch import Generator, Tensor

GROUP = 256
LARGEST = 127
LEAST = 1e-30  # scale, also of zeros
FACTORS = (0.97, 0.94, 0.91, 0.88, 0.85, 0.8)  # on a row's scale
FORM = {"format": "int8_tensorwise", "convrot": True, "convrot_groupsize": GROUP}


def rotate(rows: Tensor) -> Tensor:
    """Each group of a row times the matrix, by sums and differences of two.

    The bits of a product of matrices depend on how many rows there are, and on the machine; these do not.
    """
    import torch

    values = rows.reshape(-1, GROUP).T.clone(memory_format=torch.contiguous_format)  # [place in the group, groups]
    halves = torch.empty_like(values)
    for step in (64, 16, 4, 1):
        a, b, c, d = values.view(-1, 4, step, values.shape[1]).unbind(1)
        ab, a_b, cd, c_d = halves.view(-1, 4, step, values.shape[1]).unbind(1)
        torch.add(a, b, out=ab)
        torch.sub(a, b, out=a_b)
        torch.add(c, d, out=cd)
        torch.sub(c, d, out=c_d)
        torch.add(ab, c_d, out=a)
        torch.sub(ab, c_d, out=b)
        torch.add(cd, a_b, out=c)
        torch.sub(cd, a_b, out=d)
    rotated = halves.view(-1, GROUP)
    return torch.mul(values.T, GROUP**-0.5, out=rotated).view(rows.shape)


def encode(
    rows: Tensor, parts: Parts, generator: Generator | None, peak: float, factors: Tensor | None = None
) -> None:
    import torch

    rotated = rotate(rows)
    scale = rotated.abs().amax(1, keepdim=True).float().div_(LARGEST)
    scale = (scale if factors is None else scale * factors).clamp_(min=LEAST)
    parts[SCALE].copy_(scale)
    scaled = rotated.div_(scale)
    if generator is None:
        scaled.round_()
    else:
        scaled.add_(torch.rand(scaled.shape, generator=generator).to(scaled.device)).floor_()
    parts[MAIN].copy_(scaled.clamp_(-LARGEST - 1, LARGEST))


def decode(parts: Parts) -> Tensor:
    return rotate(parts[MAIN].float() * parts[SCALE])


ENCODING = Encoding(
    "int8 with a scale per row, rotated in groups of 256 (ComfyUI)",
    DTYPES["I8"],
    encode,
    decode,
    block=GROUP,
    companions=(Companion(SCALE, DTYPES["F32"], lambda rows, columns: (rows, 1)), described(FORM)),
    takes=linears,
    form=FORM,
    scales=Scales(encode, FACTORS),
)

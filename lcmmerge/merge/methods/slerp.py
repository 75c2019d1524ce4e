"""Spherical interpolation of two terms: the way from Δ₁ to Δ₂ goes along the arc between them, not along the chord.

W′ = W + (λ₁ + λ₂) · [sin((1 − t)θ) Δ₁ + sin(tθ) Δ₂] / sin θ with t = λ₂ / (λ₁ + λ₂) and θ the angle between Δ₁ and Δ₂,
as vectors of a whole parameter (Shoemake 1985; with λ₁ + λ₂ = 1 mergekit's ``slerp`` of the two Δ). Two terms of one
length at right angles keep that length at every t, where a sum would shorten them. A negative λ turns its Δ round, and
counts as |λ|. Where the two lie along one line it is λ₁Δ₁ + λ₂Δ₂, and where one term alone reaches a parameter, λΔ.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lcmmerge.merge.methods.base import ROWS, Method, Parameters

if TYPE_CHECKING:
    from torch import Tensor

ALONG = 1e-4  # of sin θ: nearer to a line the arc is the chord


def weigh(gram: Tensor, strengths: Tensor, parameters: Parameters) -> Tensor:
    if len(strengths) == 1:
        return strengths.expand(gram.shape[:-1])
    signs, sizes = strengths.sign(), strengths.abs()
    lengths = gram.diagonal(dim1=-2, dim2=-1).clamp(min=0).sqrt()
    product = lengths.prod(-1)
    cosine = (gram[..., 0, 1] * signs.prod() / product.where(product > 0, 1.0)).clamp(-1, 1)
    angle = cosine.acos()
    sine = angle.sin().where(product > 0, 0.0)[..., None]
    total = sizes.sum()
    shares = (angle[..., None] * sizes / total).sin() / sine.where(sine > ALONG, 1.0) * total * signs
    return shares.where(sine > ALONG, strengths)


METHOD = Method(
    "spherical interpolation",
    "https://doi.org/10.1145/325165.325242",
    parameters=ROWS,
    weigh=weigh,
    terms=2,
)

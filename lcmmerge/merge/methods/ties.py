"""TIES-Merging (trim, elect sign, merge): where terms disagree about a weight's direction, the stronger side moves it.

Of each term's Δ the share ``density`` of a parameter's numbers that is largest in magnitude is kept. Each weight then
moves in the direction of the sum of what is kept of λᵢΔᵢ, by the mean of those that point there.

It is PEFT's ``ties`` of the tensors λᵢΔᵢ with weights of 1. (PEFT's own ``weights`` count only after the directions are
chosen; where all are the same positive number, that is the same.) mergekit chooses directions as here, then divides by
the sum of the agreeing λ, not by their number, so that only the λs' ratios count. Where all its weights are the same,
its result with its ``lambda`` L is this with every λ = L.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lcmmerge.merge.methods.base import Method, MethodParameter, Parameters
from lcmmerge.merge.methods.magnitudes import largest

if TYPE_CHECKING:
    from torch import Tensor


def keep(delta: Tensor, parameters: Parameters, name: str = "") -> Tensor | None:
    """The int(density · numel) largest magnitudes."""
    return largest(delta, int(parameters["density"] * delta.numel()))


def combine(weights: Tensor, deltas: Sequence[Tensor], strengths: Sequence[float], parameters: Parameters) -> Tensor:
    for delta, strength in zip(deltas, strengths, strict=True):
        delta.mul_(strength)
    upwards = sum(deltas[1:], start=deltas[0]) >= 0
    moved, agreeing = weights.new_zeros(weights.shape), weights.new_zeros(weights.shape)
    for delta in deltas:
        agrees = ((delta > 0) == upwards) & (delta != 0)
        moved.add_(delta.mul_(agrees))
        agreeing.add_(agrees)
    return weights.add_(moved.div_(agreeing.clamp_(min=1)))


METHOD = Method(
    "TIES-Merging",
    "https://arxiv.org/abs/2306.01708",
    combine,
    keep,
    {"density": MethodParameter(0.2, 0.0, 1.0, "the share of each term's numbers that is kept")},
)

"""Magnitude pruning: W′ = W + Σ λᵢ·(the largest numbers of Δᵢ). TIES-Merging without its vote.

It is PEFT's ``magnitude_prune`` of the tensors λᵢΔᵢ with weights of 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lcmmerge.merge.methods.base import Method, MethodParameter, Parameters
from lcmmerge.merge.methods.ties import keep

if TYPE_CHECKING:
    from torch import Tensor


def combine(weights: Tensor, deltas: Sequence[Tensor], strengths: Sequence[float], parameters: Parameters) -> Tensor:
    """W + Σ λᵢΔᵢ of what was kept."""
    for delta, strength in zip(deltas, strengths, strict=True):
        weights.add_(delta, alpha=strength)
    return weights


METHOD = Method(
    "magnitude pruning",
    "https://arxiv.org/abs/2306.01708",  # its section 4: what TIES calls trimming
    combine,
    keep,
    {"density": MethodParameter(0.5, 0.0, 1.0, "the share of each term's numbers that is kept")},
)

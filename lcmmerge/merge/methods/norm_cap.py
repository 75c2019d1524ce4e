"""A cap on how far a parameter moves: ‖Σ λᵢΔᵢ‖ is at most ``factor`` times the largest ‖λᵢΔᵢ‖.

Where terms push one way, their sum is longer than any of them, and pictures over-saturate: there the sum is shortened,
and keeps its direction. Where they do not, it is task arithmetic. The rule is this project's own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lcmmerge.merge.methods.base import ROWS, Method, MethodParameter, Parameters

if TYPE_CHECKING:
    from torch import Tensor


def weigh(gram: Tensor, strengths: Tensor, parameters: Parameters) -> Tensor:
    """min(1, factor · max ‖λᵢΔᵢ‖ / ‖Σ λᵢΔᵢ‖) · λ."""
    total = ((gram @ strengths) * strengths).sum(-1).clamp(min=0).sqrt()
    limit = parameters["factor"] * (gram.diagonal(dim1=-2, dim2=-1).clamp(min=0).sqrt() * strengths.abs()).amax(-1)
    share = (limit / total.clamp(min=1e-300)).clamp(max=1)
    return share[..., None] * strengths


METHOD = Method(
    "task arithmetic with a cap on the norm",
    "https://arxiv.org/abs/2212.04089",
    parameters={
        "factor": MethodParameter(1.0, 0.0, 100.0, "how many times the longest term the sum may be long"),
        **ROWS,
    },
    weigh=weigh,
)

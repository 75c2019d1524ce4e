"""Model Breadcrumbs: of each term's Δ neither the largest outliers nor the smallest numbers take part.

Of a parameter's n numbers the int(gamma · n) largest in magnitude are left out, and of the others the
int(density · n) largest are kept, or all where fewer are left: W′ = W + Σ λᵢ·(what is kept of Δᵢ). The paper's γ is
this ``gamma``, and its β is 1 − gamma − density.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lcmmerge.merge.methods.base import Method, MethodParameter, Parameters
from lcmmerge.merge.methods.magnitude_prune import combine
from lcmmerge.merge.methods.magnitudes import largest

if TYPE_CHECKING:
    from torch import Tensor


def keep(delta: Tensor, parameters: Parameters, name: str) -> Tensor | None:
    numel = delta.numel()
    outliers = int(parameters["gamma"] * numel)
    kept = min(outliers + int(parameters["density"] * numel), numel)
    if not outliers:
        return largest(delta, kept)
    left_out, within = largest(delta.clone(), outliers), largest(delta, kept)
    if left_out is None:  # γ of 1
        return delta.bool().zero_()
    return ~left_out if within is None else within & ~left_out


METHOD = Method(
    "Model Breadcrumbs",
    "https://arxiv.org/abs/2312.06795",
    combine,
    keep,
    {
        "density": MethodParameter(0.9, 0.0, 1.0, "the share of each term's numbers that is kept"),
        "gamma": MethodParameter(0.01, 0.0, 1.0, "the share of the largest that is left out"),
    },
)

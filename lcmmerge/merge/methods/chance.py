"""Chance that depends on a seed and on names alone: what methods that drop numbers at random share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lcmmerge.merge.methods.base import MethodParameter, Parameters
from lcmmerge.merge.methods.magnitude_prune import combine as add
from lcmmerge.merge.methods.ties import combine as vote

if TYPE_CHECKING:
    from torch import Tensor

SEED = MethodParameter(0.0, 0.0, 2.0**31, "of chance")
ELECT = "1: signs are elected, and what agrees is averaged, as TIES does; 0: a sum"


def uniform(delta: Tensor, seed: float, name: str) -> Tensor:
    """A number in [0, 1) for each of Δ's, float32 on its device, drawn on the CPU in the tensor's order."""
    import torch

    from lcmmerge.tensors.chance import generator_of

    return torch.rand(delta.shape, generator=generator_of(f"{seed:.0f}/{name}")).to(delta.device)


def summed(weights: Tensor, deltas: Sequence[Tensor], strengths: Sequence[float], parameters: Parameters) -> Tensor:
    """W + Σ λᵢΔᵢ, or with ``elect`` 1 what TIES makes of them."""
    return (vote if parameters["elect"] else add)(weights, deltas, strengths, parameters)

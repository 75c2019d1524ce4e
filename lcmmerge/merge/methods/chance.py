"""Chance that depends on a seed and on names alone: what methods that drop numbers at random share."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from lcmmerge.merge.methods.base import MethodParameter

if TYPE_CHECKING:
    from torch import Tensor

SEED = MethodParameter(0.0, 0.0, 2.0**31, "of chance")
ELECT = "1: signs are elected, and what agrees is averaged, as TIES does; 0: a sum"


def uniform(delta: Tensor, seed: float, name: str) -> Tensor:
    """A number in [0, 1) for each of Δ's, float32 on its device, drawn on the CPU in the tensor's order."""
    import torch

    digest = hashlib.blake2b(f"{seed:.0f}/{name}".encode(), digest_size=7).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest, "little"))
    return torch.rand(delta.shape, generator=generator).to(delta.device)

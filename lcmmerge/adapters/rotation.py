"""Orthogonal matrices from skew-symmetric ones, for OFT and BOFT.

The Cayley transform of q = −qᵀ is R = (I + q)(I − q)⁻¹. What is added to a weight is (R − I)·W, and
R − I = 2q(I − q)⁻¹ holds exactly, so that small rotations do not drown in the rounding of the identity.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def cayley_minus_identity(skew: Tensor) -> Tensor:
    """skew: [..., b, b] → R − I."""
    import torch

    identity = torch.eye(skew.shape[-1], device=skew.device)
    turn: Tensor = torch.linalg.solve(identity - skew, 2 * skew, left=False)
    return turn


def neumann_minus_identity(skew: Tensor, terms: int) -> Tensor:
    """PEFT's truncated series of the same: 2q + 2q² + … + 2q^(n−1) + q^n, n = max(terms − 1, 3)."""
    import torch

    if terms <= 2:
        return 2 * skew if terms == 2 else torch.zeros_like(skew)
    top = max(terms - 1, 3)
    power = skew
    total = 2 * skew
    for exponent in range(2, top + 1):
        power = power @ skew
        total = total + (power if exponent == top else 2 * power)
    return total


def constrained(skew: Tensor, limit: float) -> Tensor:
    """Scaled down to the Frobenius norm ``limit`` where it is above; 0 means no limit (LyCORIS, kohya)."""
    norm = skew.norm() + 1e-8
    return skew * (limit / norm) if 0 < limit < norm else skew

"""The best low-rank approximation of a matrix, ΔW ≈ up @ down, and how much of ‖ΔW‖² it keeps.

The truncated SVD is the best one of its rank (Eckart and Young 1936); a randomised SVD finds it without the rest:
Halko, Martinsson, Tropp 2011, https://arxiv.org/abs/0909.4061. Everything is float32.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lcmmerge.tensors.chance import generator_of

OVERSAMPLING = 16
BLOCK = 1 << 20  # elements
ITERATIONS = 3  # of the power method: differences of checkpoints have slowly falling spectra


@dataclass(frozen=True, slots=True)
class Spectrum:
    """Singular triplets, largest first: ``left`` [m, k], ``values`` [k], ``right`` [k, n]; ``square``: ‖ΔW‖²."""

    left: Tensor
    values: Tensor
    right: Tensor
    square: float

    def energies(self) -> Tensor:
        """The share of ‖ΔW‖² that ranks 1, 2, … keep; float64 [k]."""
        return (self.values.double() ** 2).cumsum(0) / self.square

    def enough(self, rank: int, energy: float | None) -> int:
        """The least rank that keeps ``energy``, and no more than ``rank``."""
        most = min(rank, len(self.values))
        if energy is None:
            return most
        return min(most, int((self.energies() < energy).sum()) + 1)

    def factors(self, rank: int) -> tuple[Tensor, Tensor]:
        """``up`` [m, r] and ``down`` [r, n], with √S in each."""
        root = self.values[:rank].sqrt()
        return self.left[:, :rank] * root, root[:, None] * self.right[:rank]


def spectrum(matrix: Tensor, rank: int, seed: str) -> Spectrum:
    """The first ``rank`` triplets of ``matrix`` [m, n], and some more; all of them where that is no dearer."""
    norm = squared_norm(matrix)
    width = rank + OVERSAMPLING
    if 2 * width >= min(matrix.shape):
        left, values, right = torch.linalg.svd(matrix, full_matrices=False)
        return Spectrum(left, values, right, norm)
    start = torch.randn(matrix.shape[1], width, generator=generator_of(seed))
    basis = _orthonormal(matrix @ start)
    for _ in range(ITERATIONS):
        basis = _orthonormal(matrix @ _orthonormal(matrix.T @ basis))
    left, values, right = torch.linalg.svd(basis.T @ matrix, full_matrices=False)
    return Spectrum(basis @ left, values, right, norm)


def product_spectrum(up: Tensor, down: Tensor) -> Spectrum:
    """All triplets of up @ down, from the QR decompositions of the two: the product is never formed."""
    left, left_core = torch.linalg.qr(up)
    right, right_core = torch.linalg.qr(down.T)
    u, values, v = torch.linalg.svd(left_core @ right_core.T, full_matrices=False)
    return Spectrum(left @ u, values, v @ right.T, float(values.double().square().sum()))


def squared_norm(tensor: Tensor) -> float:
    """‖tensor‖² to float32's full precision, block by block, without a copy; not finite where an element is not."""
    blocks = torch.split(tensor.reshape(-1), BLOCK)
    return sum((float(block.square().sum(dtype=torch.float64)) for block in blocks), 0.0)


def _orthonormal(matrix: Tensor) -> Tensor:
    basis: Tensor = torch.linalg.qr(matrix).Q
    return basis

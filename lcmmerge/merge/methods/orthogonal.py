"""Orthogonal terms: of each the part that lies along an earlier one is taken out (Gram–Schmidt), then all are added.

Δ̃ⱼ = Δⱼ − Σ_{i<j} ⟨Δⱼ, Δ̃ᵢ⟩ / ⟨Δ̃ᵢ, Δ̃ᵢ⟩ · Δ̃ᵢ, and W′ = W + Σ λᵢΔ̃ᵢ. The order of terms counts: the first stays as it
is. A term that is a multiple of an earlier one changes nothing there. Projections of one fine-tuning's change out of
another's are in https://arxiv.org/abs/2310.14152 (orthogonal subspaces of LoRAs).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lcmmerge.merge.methods.base import ROWS, Method, Parameters

if TYPE_CHECKING:
    from torch import Tensor

NOTHING = 1e-12  # of ‖Δ‖²: what is left of a term that lies along others, but for rounding


def weigh(gram: Tensor, strengths: Tensor, parameters: Parameters) -> Tensor:
    """λᵀT, where the rows of T are the Δ̃ in terms of the Δ."""
    import torch

    squares = gram.diagonal(dim1=-2, dim2=-1)
    rows: list[Tensor] = []  # of T, [..., k] each
    for number, unit in enumerate(torch.eye(len(strengths), dtype=gram.dtype, device=gram.device)):
        row = unit.expand(gram.shape[:-1])
        for earlier in rows:
            across, square = (earlier * gram[..., number]).sum(-1), _square(earlier, gram)
            row = row - (across / square.where(square > 0, 1.0))[..., None] * earlier
        left = _square(row, gram) > NOTHING * squares[..., number]
        rows.append(row.where(left[..., None], 0.0))
    return (torch.stack(rows, -2) * strengths[:, None]).sum(-2)


def _square(row: Tensor, gram: Tensor) -> Tensor:
    """‖Σ rowᵢΔᵢ‖²."""
    return ((row[..., None, :] @ gram)[..., 0, :] * row).sum(-1)


METHOD = Method(
    "orthogonal task vectors", "https://arxiv.org/abs/2310.14152", parameters=ROWS, weigh=weigh
)

"""What one term changes: D with θ(λ) = W₀ + Σ λᵢDᵢ. Every algorithm is linear in its λ, since all start from W₀."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lcmmerge.bake import arithmetic
from lcmmerge.bake.arithmetic import Work
from lcmmerge.bake.outcome import Measured
from lcmmerge.merge.layout import Piece


@dataclass(frozen=True, slots=True)
class Change:
    """A term's part in one parameter: ``work`` holds its factors, or what else D is made of, on ``device``."""

    work: Work
    device: torch.device

    @classmethod
    def of(cls, piece: Piece, term: int, device: torch.device) -> Change:
        """Reads the term's tensors. A contribution's own strength (λ × block weight) is part of D.

        Raises NumericError, FormatError.
        """
        own = tuple(item for item in piece.contributions if item.term == term)
        return cls(arithmetic.prepare(replace(piece, contributions=own), str(device)), device)

    @property
    def factors(self) -> tuple[Tensor, Tensor] | None:
        """(up [out, r], down [r, in·kh·kw]) where D.flatten(1) = up @ down, float32; else None."""
        up, down = self.work.up, self.work.down
        return None if up is None or down is None else (up, down)

    def dense(self, pristine: Tensor) -> Tensor:
        """D in float32, in the parameter's shape; ``pristine`` is W₀ in any dtype, on the device."""
        out = torch.zeros(pristine.shape, device=self.device)
        flat = out.view(out.shape[0], -1)
        differences = [
            (item.term, item.strength, item.read(self.device, torch.float32)) for item in self.work.differences
        ]
        arithmetic.add_terms(flat, self.work, slice(None), differences, pristine.float(), Measured())
        return out

    def add_to(self, weights: Tensor, strength: float) -> None:
        """``weights`` (float32, in the parameter's shape) += λ · up @ down, in place."""
        assert self.factors
        weights.view(weights.shape[0], -1).addmm_(*self.factors, alpha=strength)

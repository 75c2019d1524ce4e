"""The λ field: θ(λ) = W₀ + Σ λᵢDᵢ in a live pipeline, always from the pristine W₀, so that nothing drifts.

A parameter that no changed λ reaches is left alone, so the order of cells matters.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from lcmmerge.merge import arithmetic
from lcmmerge.merge.changes import Change
from lcmmerge.merge.plan import Piece, Plan
from lcmmerge.sample.load import Pipeline, canonical
from lcmmerge.search.order import Strengths, changed


@dataclass(frozen=True, slots=True)
class Part:
    """One parameter of a module: ``pristine`` is W₀ as stored, ``changes`` term → D, or a LoRA's factors of it."""

    piece: Piece
    module: nn.Parameter
    pristine: Tensor
    changes: Mapping[int, Tensor | Change]

    @classmethod
    def of(cls, piece: Piece, module: nn.Parameter) -> Part:
        """Only what is no product of two factors is formed. Raises NumericError, FormatError."""
        pristine = piece.operand.read().to(module.device)
        found = {term: Change.of(piece, term, module.device) for term in _terms(piece)}
        changes: dict[int, Tensor | Change] = {
            term: change if change.factors else change.dense(pristine) for term, change in found.items()
        }
        return cls(piece, module, pristine, changes)

    @property
    def name(self) -> str:
        return self.piece.operand.name

    @property
    def factored(self) -> int:
        """Elements of D that are not formed."""
        return self.pristine.numel() * sum(isinstance(change, Change) for change in self.changes.values())

    def formed(self) -> Part:
        """With every D in float32."""
        formed = {
            term: change.dense(self.pristine) if isinstance(change, Change) else change
            for term, change in self.changes.items()
        }
        return replace(self, changes=formed)

    def write(self, strengths: Strengths) -> None:
        """θ(λ), rounded as a baked checkpoint rounds it, then cast to the module's dtype. Raises NumericError."""
        target = self.module.data
        weights = target if target.dtype == torch.float32 else torch.empty(target.shape, device=target.device)
        weights.copy_(self.pristine)
        for term, change in self.changes.items():
            if not strengths[term]:
                continue
            if isinstance(change, Tensor):
                weights.add_(change, alpha=strengths[term])
            else:
                change.add_to(weights, strengths[term])
        stored = self.piece.dtype.torch
        baked = weights if stored == torch.float32 else torch.empty_like(weights, dtype=stored)
        arithmetic.round_into(baked, weights, self.piece, 0, None)
        if baked is not target:
            target.copy_(baked)


class Field:
    """``plan``: a merge in which every λ is 1. ``pipeline``: of its base, with the base's own weights.

    A LoRA's D is formed anew from its factors for each cell, until ``form`` keeps it. Raises NumericError, FormatError.
    """

    def __init__(self, plan: Plan, pipeline: Pipeline) -> None:
        self.plan, self.pipeline = plan, pipeline
        self._now: Strengths | None = (0.0,) * len(plan.terms)
        parameters = _parameters(pipeline, plan.base.components)
        self.parts = [Part.of(piece, parameters[piece.operand.name]) for piece in _pieces(plan)]

    @torch.no_grad()
    def form(self) -> None:
        """Keep every D in float32: four bytes for each parameter that a term reaches."""
        self.parts = [part.formed() for part in self.parts]

    @torch.no_grad()
    def set(self, strengths: Strengths) -> None:
        """Write θ(λ) into the modules. Raises NumericError where a baked checkpoint would not be finite."""
        touched = changed(self._now, strengths)
        self._now = None  # where a part cannot be written, the next cell writes them all
        for part in self.parts:
            if touched & part.changes.keys():
                part.write(strengths)
        self._now = strengths

    def text_key(self, strengths: Strengths) -> Strengths:
        """What the text encoders depend on: cells with the same key share their prompts' embeddings."""
        reaching = {term for part in self.parts if part.name.startswith("text_encoder") for term in part.changes}
        return tuple(strengths[term] for term in sorted(reaching))


def reached(plan: Plan) -> Counter[frozenset[int]]:
    """Which terms → how many elements of the base exactly those reach: what rewriting costs. Headers only."""
    found: Counter[frozenset[int]] = Counter()
    for piece in _pieces(plan):
        found[frozenset(_terms(piece))] += piece.operand.numel
    return found


def _pieces(plan: Plan) -> Iterator[Piece]:
    """Those that a term reaches."""
    for file in plan.files:
        for tensor in file.tensors:
            yield from (piece for piece in tensor.pieces if piece.contributions)


def _parameters(pipeline: Pipeline, components: Iterable[str]) -> dict[str, nn.Parameter]:
    """Canonical name → the module's parameter."""
    return {
        canonical(component, name): parameter
        for component in components
        for name, parameter in getattr(pipeline, component).named_parameters()
    }


def _terms(piece: Piece) -> list[int]:
    """In order, so that sums round alike."""
    return sorted({item.term for item in piece.contributions})

"""The λ field: θ(λ) = W₀ + Σ λᵢDᵢ in a live pipeline, always from the pristine W₀, so that nothing drifts.

A parameter that no changed λ reaches is left alone, so the order of cells matters.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import nan

import numpy as np
import torch
from torch import Tensor, nn

from lcmmerge.bake import arithmetic
from lcmmerge.draw.load import Pipeline, canonical
from lcmmerge.merge.layout import Piece
from lcmmerge.merge.plan import Plan
from lcmmerge.search.blocks import BlockAxis, factors_of, pieces, terms_of
from lcmmerge.search.changes import Change
from lcmmerge.search.order import Cell, changed
from lcmmerge.tensors import DTYPES
from lcmmerge.tensors.encodings import MAIN, plain
from lcmmerge.terms.operand import Operand

FLOATS = plain(DTYPES["F32"])


@dataclass(frozen=True, slots=True)
class LiveParameter:
    """One parameter of a module: ``pristine`` is W₀ as stored, ``changes`` term → D, or a LoRA's factors of it.

    ``factors``: term → which of a cell's numbers multiplies its λ here, where one does.
    """

    piece: Piece
    module: nn.Parameter
    pristine: Tensor
    changes: Mapping[int, Tensor | Change]
    factors: Mapping[int, int]

    @classmethod
    def of(cls, piece: Piece, module: nn.Parameter, factors: Mapping[int, int]) -> LiveParameter:
        """Only what is not a product of two factors is formed. Raises NumericError, FormatError."""
        pristine = _pristine(piece.operand, module.device)
        found = {term: Change.of(piece, term, module.device) for term in terms_of(piece)}
        changes: dict[int, Tensor | Change] = {
            term: change if change.factors else change.dense(pristine) for term, change in found.items()
        }
        return cls(piece, module, pristine, changes, factors)

    @property
    def name(self) -> str:
        return self.piece.operand.name

    @property
    def reaching(self) -> set[int]:
        """Which of a cell's numbers count here."""
        return {*self.changes, *self.factors.values()}

    def write(self, cell: Cell) -> None:
        """θ(λ), rounded as a baked checkpoint rounds it, then cast to the module's dtype. Raises NumericError."""
        target = self.module.data
        weights = target if target.dtype == torch.float32 else torch.empty(target.shape, device=target.device)
        weights.copy_(self.pristine)
        numbers = cell.numbers
        for term, change in self.changes.items():
            strength = numbers[term] * (numbers[self.factors[term]] if term in self.factors else 1.0)
            if not strength:
                continue
            if isinstance(change, Tensor):
                weights.add_(change, alpha=strength)
            else:
                change.add_to(weights, strength)
        encoding, rows = self.piece.encoding, weights.view(self.piece.operand.rows, -1)
        baked = {MAIN: rows} if encoding == FLOATS else encoding.allocate(target.shape, target.device)
        arithmetic.round_into(baked, rows, self.piece, 0, None, arithmetic.largest(rows) if encoding.peaked else nan)
        if encoding != FLOATS or weights is not target:
            target.copy_(encoding.decode(baked).view(target.shape))


class Field:
    """A model in memory that becomes θ(λ) for any λ, without a bake.

    ``plan``: a merge in which every λ is 1. ``pipeline``: of its base, with the base's own weights.

    ``axes``: of block factors, which are numbers of a cell beside the λs.

    A LoRA's D is formed anew from its factors for each cell. Raises NumericError, FormatError.
    """

    def __init__(self, plan: Plan, pipeline: Pipeline, axes: tuple[BlockAxis, ...] = ()) -> None:
        self.plan, self.pipeline = plan, pipeline
        self._now: Cell | None = Cell((0.0,) * len(plan.terms), (0.0,) * len(axes))
        parameters = _parameters(pipeline, plan.base.components)
        self.parts = [
            LiveParameter.of(piece, parameters[piece.operand.name], factors_of(piece, plan, axes))
            for piece in pieces(plan)
        ]

    @torch.no_grad()
    def set(self, cell: Cell) -> None:
        """Write θ(λ) into the modules. Raises NumericError where a baked checkpoint would not be finite."""
        touched = changed(self._now, cell)
        self._now = None  # where a part cannot be written, the next cell writes them all
        for part in self.parts:
            if touched & part.reaching:
                part.write(cell)
        self._now = cell

    def text_key(self, cell: Cell) -> tuple[float, ...]:
        """What the text encoders depend on: cells with the same key share their prompts' embeddings."""
        reaching = {term for part in self.parts if part.name.startswith("text_encoder") for term in part.reaching}
        return tuple(cell.numbers[number] for number in sorted(reaching))


def reached(plan: Plan, axes: tuple[BlockAxis, ...] = ()) -> Counter[frozenset[int]]:
    """Which of a cell's numbers → how many elements exactly those reach: what rewriting costs. Headers only."""
    found: Counter[frozenset[int]] = Counter()
    for piece in pieces(plan):
        found[frozenset([*terms_of(piece), *factors_of(piece, plan, axes).values()])] += piece.operand.numel
    return found


def _pristine(operand: Operand, device: torch.device) -> Tensor:
    """W₀ as stored. On the CPU it lies in the file's own pages, so that the model is not in memory twice."""
    if device.type != "cpu" or operand.transposed or len(operand.spans) > 1 or operand.info.encoded:
        return operand.read().to(device)
    mapped = np.memmap(operand.path, np.uint8, "c", *operand.spans[0])
    return torch.from_numpy(mapped).view(operand.dtype.torch).reshape(operand.shape)


def _parameters(pipeline: Pipeline, components: Iterable[str]) -> dict[str, nn.Parameter]:
    """Canonical name → the module's parameter."""
    return {
        canonical(component, name): parameter
        for component in components
        for name, parameter in getattr(pipeline, component).named_parameters()
    }

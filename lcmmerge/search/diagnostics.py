"""How two terms' changes of each layer lie to one another. Diagnostics only: they do not foretell how a merge draws."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import combinations
from math import sqrt
from typing import Any

import torch

from lcmmerge.adapters import Factored
from lcmmerge.bake.arithmetic import factored_inner
from lcmmerge.merge.layout import Piece
from lcmmerge.merge.plan import Plan
from lcmmerge.search.blocks import pieces, terms_of
from lcmmerge.search.changes import Change


@dataclass(frozen=True, slots=True)
class Overlap:
    """Of one layer and two terms: the cosine of their Ds as vectors, and ‖D‖ of the first over the second's."""

    parameter: str
    first: str
    second: str
    cosine: float
    ratio: float

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@torch.no_grad()
def overlaps(plan: Plan) -> Iterator[Overlap]:
    """Of every parameter that two terms reach, at λ = 1. Raises NumericError, FormatError."""
    for piece in pieces(plan):
        yield from _of(piece, plan)


def _of(piece: Piece, plan: Plan) -> Iterator[Overlap]:
    reaching = terms_of(piece)
    if len(reaching) < 2:
        return
    changes = {term: Change.of(piece, term, torch.device("cpu")) for term in reaching}
    norms = {term: sqrt(_inner(change, change, piece)) for term, change in changes.items()}
    for one, other in combinations(reaching, 2):
        if norms[one] and norms[other]:
            cosine = _inner(changes[one], changes[other], piece) / (norms[one] * norms[other])
            names = plan.terms[one].name, plan.terms[other].name
            yield Overlap(piece.operand.name, *names, cosine, norms[one] / norms[other])


def _inner(one: Change, other: Change, piece: Piece) -> float:
    """⟨D, D′⟩, without forming them where there are factors."""
    if one.factors and other.factors:
        return factored_inner(Factored(*one.factors), Factored(*other.factors))
    pristine = piece.operand.read()
    return float((one.dense(pristine).double() * other.dense(pristine).double()).sum())

"""Factors on a term's λ in some blocks of the U-Net, as dimensions of a search beside the λs.

A cell's numbers are the λ of each term, then the factor of each block axis; where no axis speaks of a block, its factor
is 1. Factors are those of ``--block-weights``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import isfinite

from lcmmerge.archs.blocks import block_of, blocks, span
from lcmmerge.errors import OptionError
from lcmmerge.merge.layout import Piece
from lcmmerge.merge.plan import Plan


@dataclass(frozen=True, slots=True)
class Factors:
    """Values for the factor of some blocks. ``values``: of a grid. Optuna chooses between ``low`` and ``high``."""

    low: float
    high: float
    values: tuple[float, ...] = (1.0,)


@dataclass(frozen=True, slots=True)
class BlockAxis:
    """An axis of a search: the factor of some blocks of a term.

    ``term``: its number in the plan. ``span``: as ``--block-weights`` names the ``blocks``: ``IN00-IN05``.
    """

    name: str
    term: int
    span: str
    blocks: frozenset[str]
    factors: Factors


Asked = Mapping[str, Mapping[str, Factors]]  # term → blocks as a person names them → factors


def block_axes(asked: Asked, plan: Plan) -> tuple[BlockAxis, ...]:
    """Raises OptionError for what is no term, block or number, is named twice, or is not reached by the term."""
    names, order = [term.name for term in plan.terms], blocks(plan.base)
    found = []
    for name, spans in asked.items():
        if name not in names:
            raise OptionError(f"--block {name}: no such term", f"the terms are {', '.join(names)}")
        term = names.index(name)
        taken = set(plan.terms[term].weights.factors)
        reached = {block_of(piece.operand.name, plan.base) for piece in pieces(plan) if term in terms_of(piece)}
        for text, factors in spans.items():
            try:
                chosen = span(text, order)
            except ValueError as error:
                raise OptionError(f"--block {name} {text}: {error}", "name them as --block-weights does") from None
            if twice := taken.intersection(chosen):
                raise OptionError(f"--block {name} {text}: {min(twice)} has a factor already", "name a block once")
            if not reached.intersection(chosen):
                raise OptionError(f"--block {name} {text}: {name} changes nothing there", "omit it")
            if not all(map(isfinite, (factors.low, factors.high, *factors.values))):
                raise OptionError(f"--block {name} {text}: no finite factors", "write them as 0:1.5, or 0:1:0.5")
            taken |= set(chosen)
            ends = chosen[0] if len(chosen) == 1 else f"{chosen[0]}-{chosen[-1]}"
            found.append(BlockAxis(f"{name}@{text}", term, ends, frozenset(chosen), factors))
    return tuple(found)


def pieces(plan: Plan) -> Iterator[Piece]:
    """Those that a term reaches."""
    for file in plan.files:
        for tensor in file.tensors:
            yield from (piece for piece in tensor.pieces if piece.contributions)


def terms_of(piece: Piece) -> list[int]:
    """In order, so that sums round alike."""
    return sorted({item.term for item in piece.contributions})


def factors_of(piece: Piece, plan: Plan, axes: tuple[BlockAxis, ...]) -> dict[int, int]:
    """Term → which of a cell's numbers is its factor here, where there is one."""
    if not axes:
        return {}
    block = block_of(piece.operand.name, plan.base)
    return {
        axis.term: len(plan.terms) + number
        for number, axis in enumerate(axes)
        if block in axis.blocks and axis.term in terms_of(piece)
    }

"""What a merge did, per component and term, from what the blocks measured."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from math import inf, sqrt
from typing import Any

from lcmmerge.errors import NoEffectError
from lcmmerge.merge.outcome import Layer
from lcmmerge.merge.plan import Plan


@dataclass(frozen=True, slots=True)
class ReportRow:
    """One term in one component.

    ``parameters`` of ``of`` were changed. ``relative``: ‖λΔ‖ / ‖θ‖ over those, of Δ what the method keeps. ``signal``:
    ‖λΔ‖ / ‖rounding error‖; below about 3 the output dtype swallows a good part of the term. ``weakest``: the layer
    with the least signal.
    """

    term: str
    component: str
    strength: float
    parameters: int
    of: int
    relative: float
    signal: float
    weakest: str
    weakest_signal: float


@dataclass(frozen=True, slots=True)
class Report:
    """What a fuse did. ``method``: with its parameters, as ``--method`` has it. ``lent``: the file that completed the
    base → component → how many parameters came from there. ``doubts``: the plan's.
    """

    output: str
    nbytes: int
    sha256: dict[str, str]
    rows: tuple[ReportRow, ...]
    layers: tuple[Layer, ...]
    unmatched: dict[str, tuple[str, ...]]
    dropped: tuple[str, ...]
    method: str
    lent: dict[str, dict[str, int]] = field(default_factory=dict)
    doubts: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready; an infinite signal (nothing was lost) is null."""
        rows = [
            {key: None if value == inf else value for key, value in asdict(row).items()} for row in self.rows
        ]
        return {
            "output": self.output,
            "bytes": self.nbytes,
            "sha256": self.sha256,
            "method": self.method,
            "coverage": rows,
            "unmatched": self.unmatched,
            "dropped": list(self.dropped),
            **({"lent": self.lent} if self.lent else {}),
            **({"doubts": list(self.doubts)} if self.doubts else {}),
        }


def rows(plan: Plan, layers: Iterable[Layer]) -> tuple[ReportRow, ...]:
    """One row per term and component. Raises NoEffectError where a term with λ ≠ 0 changed nothing at all."""
    layers = tuple(layers)
    found = tuple(
        row
        for index in range(len(plan.terms))
        for component in plan.base.components
        if (row := _row(plan, index, component, layers)) is not None
    )
    for index, term in enumerate(plan.terms):
        if term.strength and not any(layer.squares.get(index) for layer in layers):
            kept = "all its updates are zero" if plan.merge.linear else f"{plan.merge.method_text} keeps nothing of it"
            raise NoEffectError(f"{term.path}: {kept}, so it changes nothing", "is it a trained file?")
    return found


def _row(plan: Plan, index: int, component: str, layers: tuple[Layer, ...]) -> ReportRow | None:
    mine = [layer for layer in layers if layer.name.startswith(f"{component}.")]
    touched = [layer for layer in mine if index in layer.squares]
    if not touched:
        return None
    change = sum(layer.squares[index] for layer in touched)
    weakest = min(touched, key=lambda layer: _signal(layer.squares[index], layer.error_square))
    return ReportRow(
        plan.terms[index].name,
        component,
        plan.terms[index].strength,
        len(touched),
        len(mine),
        sqrt(change / base) if (base := sum(layer.base_square for layer in touched)) else inf,
        _signal(change, sum(layer.error_square for layer in touched)),
        weakest.name,
        _signal(weakest.squares[index], weakest.error_square),
    )


def _signal(change: float, error: float) -> float:
    return sqrt(change / error) if error else inf

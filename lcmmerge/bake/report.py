"""What a merge did, per component and term, from what the blocks measured."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from math import inf, isfinite, nan, sqrt
from typing import Any

from lcmmerge.bake.outcome import Layer, Measured
from lcmmerge.errors import NoEffectError
from lcmmerge.merge.plan import Plan
from lcmmerge.output import share

COARSE = 0.99  # correlation of what the output changed with what it was to change


@dataclass(frozen=True, slots=True)
class ReportRow:
    """One term in one component.

    ``parameters`` of ``of`` were changed. ``relative``: ‖λΔ‖ / ‖θ‖ over those, of Δ what the method keeps. ``signal``:
    ‖λΔ‖ / ‖rounding error‖; below about 3 noise of the output's encoding is as large as a good part of the term.
    ``weakest``: the layer with the least signal. ``kept``: how much of λΔ is in the output, by a sample; NaN where that
    was not looked at.
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
    kept: float = nan


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

    @property
    def rounding(self) -> Measured:
        """What rounding kept of the whole change, by a sample of every layer."""
        return total(self.layers)

    def worst(self, count: int = 5) -> list[Layer]:
        """The layers of whose change the least is in the output."""
        changed = [layer for layer in self.layers if layer.measured.change]
        return sorted(changed, key=lambda layer: (layer.measured.gain, layer.name))[:count]

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready; an infinite signal (nothing was lost), and what was not looked at, is null."""
        rows = [{key: _finite(value) for key, value in asdict(row).items()} for row in self.rows]
        rounding = self.rounding
        return {
            "output": self.output,
            "bytes": self.nbytes,
            "sha256": self.sha256,
            "method": self.method,
            "coverage": rows,
            "rounding": {
                "gain": _finite(rounding.gain),
                "correlation": _finite(rounding.correlation),
                **({"gained": rounding.gained} if rounding.nearest_error else {}),
                "worst": [
                    {"name": layer.name, "gain": made.gain, "correlation": _finite(made.correlation)}
                    for layer in self.worst()
                    for made in [layer.measured]
                ],
            },
            "unmatched": self.unmatched,
            "dropped": list(self.dropped),
            **({"lent": self.lent} if self.lent else {}),
            **({"doubts": list(self.doubts)} if self.doubts else {}),
        }


def kept_in_words(rounding: Mapping[str, Any]) -> str:
    """What a report's JSON says of rounding, where it is so coarse that the change is not what the terms ask for."""
    correlation, worst = rounding["correlation"], rounding["worst"]
    if not worst or correlation is None or correlation >= COARSE:
        return ""
    return (
        f"Rounding kept {share(rounding['gain'])} of the change, with a correlation of {correlation:.2f}; the least in "
        f"{worst[0]['name']}: {share(worst[0]['gain'])}."
    )


def total(layers: Iterable[Layer]) -> Measured:
    """What was measured of layers together."""
    found = Measured()
    for layer in layers:
        found.add(layer.measured)
    return found


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
        sqrt(change / base) if (base := sum(layer.measured.base_square for layer in touched)) else inf,
        _signal(change, sum(layer.error_square for layer in touched)),
        weakest.name,
        _signal(weakest.squares[index], weakest.error_square),
        total(touched).share(index),
    )


def _signal(change: float, error: float) -> float:
    return sqrt(change / error) if error else inf


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not isfinite(value) else value

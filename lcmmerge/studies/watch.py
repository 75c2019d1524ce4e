"""What a person sees of a study while it runs: each drawing with its figures, as soon as it is there."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from lcmmerge.studies.arrangement import label
from lcmmerge.studies.drawing import Drawn
from lcmmerge.studies.objectives import Objective, Samples
from lcmmerge.studies.study import CELL, FLOOR, TEACHER, Ask, figures


@dataclass(frozen=True, slots=True)
class Watch:
    """Figures are not z-scored: that takes all the cells. ``names``: of a cell's numbers."""

    names: Sequence[str]
    ask: Ask
    objective: Objective
    samples: Callable[[Drawn], Samples | None]
    _teacher: list[Samples] = field(default_factory=list)

    def __call__(self, drawn: Drawn) -> Mapping[str, str]:
        """Column → what stands there. The teacher comes first."""
        drawing, ours = drawn.drawing, self.samples(drawn)
        name = label(self.names, drawing.strengths) if drawing.kind == CELL else f"{drawing.kind}, {drawing.manner}"
        row = {"drawing": name}
        if ours is None:
            return {**row, "fault": drawn.fault}
        if drawing.kind == TEACHER:
            self._teacher.append(ours)
        if drawing.kind in (TEACHER, FLOOR):
            return row
        found = figures(self.objective, ours, self._teacher[0].of(self.ask.numbers(drawing)))
        return {**row, **{figure: f"{value:.3g}" for figure, value in found.items()}}

"""From samples to a choice: figures, z-scores, bootstrap intervals, the tie set, the front, and the verdict."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lcmmerge.errors import LcmMergeError
from lcmmerge.search.drawing import Gallery, Sampled
from lcmmerge.search.objectives import Objective, Samples
from lcmmerge.search.order import Cell
from lcmmerge.search.statistics import LEVEL, Estimate, once, resamples
from lcmmerge.search.study import BASELINE, CELL, CONTROL, FLOOR, TEACHER, Ask

BEYOND = "farther from the teacher than two draws of the teacher are"
Values = Mapping[str, Tensor]  # figure → [1 + resamples], the first of them as measured


@dataclass(frozen=True, slots=True)
class ScoreRow:
    """One drawing, scored. ``manner``: steps and guidance. ``evaluations``: of the U-Net per image.

    ``control``: without the accelerator. ``score``: the mean of ``figures``, each z-scored over the cells; ``style``:
    how far the style is off, apart from it. Lower is better in both. ``ties``: not shown to be worse than the best
    cell. ``front``: no cell is better in both. ``images``: of how many it is scored; ``stopped``: not of all.
    """

    kind: str
    cell: Cell
    manner: str
    evaluations: int
    figures: Mapping[str, Estimate]
    score: Estimate | None = None
    style: Estimate | None = None
    control: bool = False
    ties: bool = False
    front: bool = False
    fault: str = ""
    images: int = 0
    stopped: bool = False

    def as_dict(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "lambda": list(self.cell.numbers),
            "manner": self.manner,
            "evaluations": self.evaluations,
            "figures": {name: figure.as_list() for name, figure in self.figures.items()},
            "score": self.score and self.score.as_list(),
            "style": self.style and self.style.as_list(),
            "control": self.control,
            "ties": self.ties,
            "front": self.front,
            "fault": self.fault,
            "images": self.images,
            "stopped": self.stopped,
        }


@dataclass(frozen=True, slots=True)
class Scored:
    """Every drawing of a study with its figures, and what follows from them.

    ``best``: the cell to take: of the tie set the nearest to the published λ. ``verdict``: sentences.
    """

    rows: tuple[ScoreRow, ...]
    best: ScoreRow
    verdict: tuple[str, ...]

    @property
    def ties(self) -> tuple[ScoreRow, ...]:
        return tuple(row for row in self.rows if row.ties)

    @property
    def front(self) -> tuple[ScoreRow, ...]:
        return tuple(row for row in self.rows if row.front)

    def as_dict(self) -> dict[str, Any]:
        return {
            "best": list(self.best.cell.numbers),
            "verdict": list(self.verdict),
            "rows": [row.as_dict() for row in self.rows],
        }


def score(
    drawn: Sequence[Sampled], evaluations: Sequence[int], objective: Objective, style: Objective, ask: Ask,
    published: Cell, samples: Callable[[Sampled], Samples | None] | None = None,
) -> Scored:  # fmt: skip
    """``evaluations``: of the U-Net per image, for each of ``drawn``. Raises LcmMergeError where every cell failed."""
    table = _Table.of(drawn, objective, style, ask, samples or Gallery())
    scores, styles = table.scores, table.styles
    best = min(table.cells, key=lambda index: float(scores[index][0]))
    ties = {index for index in table.cells if not is_worse(scores[index], scores[best])}
    front = {index for index in table.cells if not table.is_dominated(index)}
    rows = [
        ScoreRow(
            one.drawing.kind,
            one.drawing.cell,
            one.drawing.manner,
            evaluations[index],
            {name: Estimate.of(values) for name, values in table.figures.get(index, {}).items()},
            Estimate.of(scores[index]) if index in scores else None,
            Estimate.of(styles[index]) if index in styles else None,
            index in table.controls,
            index in ties,
            index in front,
            one.fault,
            0 if one.latents is None else len(one.latents),
            index in table.stopped,
        )
        for index, one in enumerate(drawn)
    ]
    chosen = min(ties, key=lambda index: (_distance(drawn[index], published), float(scores[index][0])))
    return Scored(tuple(rows), rows[chosen], tuple(_verdict(table, best, drawn, -1 if objective.maximise else 1)))


@dataclass(frozen=True, slots=True)
class _Table:
    """By number of a drawing that has samples. ``cells``: with the accelerator; ``controls``: without it.

    ``stopped``: cells that halving left behind. Their figures are of fewer images, and they are compared with nothing.

    ``apart``: scores against the teacher's draws from other noise, by the figures that compare no pairs. A solver
    follows the teacher's own trajectory: from the same noise its draws are near the teacher's, whatever they look like.
    """

    figures: Mapping[int, Values]
    styles: Mapping[int, Tensor]
    scores: Mapping[int, Tensor]
    apart: Mapping[int, Tensor]
    cells: tuple[int, ...]
    controls: tuple[int, ...]
    stopped: tuple[int, ...]

    @classmethod
    def of(
        cls, drawn: Sequence[Sampled], objective: Objective, style: Objective, ask: Ask,
        samples: Callable[[Sampled], Samples | None],
    ) -> _Table:  # fmt: skip
        found = {index: taken for index, one in enumerate(drawn) if (taken := samples(one))}
        teacher = next(index for index in found if drawn[index].drawing.kind == TEACHER)
        few_steps = tuple(index for index in found if drawn[index].drawing.kind in (CELL, CONTROL))
        controls = tuple(index for index in few_steps if ask.is_control(drawn[index].drawing.cell))
        stopped = tuple(index for index in few_steps if len(drawn[index].drawing.jobs) < len(ask.jobs))
        cells = tuple(index for index in few_steps if index not in {*controls, *stopped})
        if not cells:
            raise LcmMergeError("no cell gave an image", "choose smaller λs, or --dtype fp32")
        measure = _Measure(found, {index: ask.numbers(drawn[index].drawing) for index in found})
        figures, styles = {}, {}
        for index in (index for index in found if index != teacher):
            floor = drawn[index].drawing.kind == FLOOR
            figures[index] = {
                name: values
                for name, values in measure(objective, index, teacher).items()
                if not (floor and name in objective.paired)
            }
            styles[index] = _mean(list(measure(style, index, teacher).values()))
        scored = {index: values for index, values in figures.items() if drawn[index].drawing.kind != FLOOR}
        redrawn = next((index for index in found if drawn[index].drawing.kind == FLOOR), teacher)
        unpaired = {
            index: {
                name: figure
                for name, figure in measure(objective, index, redrawn).items()
                if name not in objective.paired or not set(values) - set(objective.paired)
            }
            for index, values in scored.items()
        }
        sign = -1 if objective.maximise else 1
        scores, apart = (
            {index: sign * values for index, values in _z_scored(each, cells).items()} for each in (scored, unpaired)
        )
        return cls(figures, styles, scores, apart, cells, controls, stopped)

    def is_dominated(self, index: int) -> bool:
        ours = float(self.scores[index][0]), float(self.styles[index][0])
        theirs = [(float(self.scores[other][0]), float(self.styles[other][0])) for other in self.cells]
        return any(one != ours and one[0] <= ours[0] and one[1] <= ours[1] for one in theirs)


@dataclass(frozen=True, slots=True)
class _Measure:
    """Figures of some drawing against another, over the same jobs; ``numbers``: which of them each has."""

    samples: Mapping[int, Samples]
    numbers: Mapping[int, Sequence[int]]

    def __call__(self, objective: Objective, index: int, other: int) -> dict[str, Tensor]:
        numbers = self.numbers[index]
        weights = torch.cat([once(len(numbers)), resamples(len(numbers))])
        measured = objective.measure(self.samples[index], self.samples[other].of(numbers))
        return {name: statistic(weights) for name, statistic in measured.items()}


def _z_scored(figures: Mapping[int, Values], cells: Sequence[int]) -> dict[int, Tensor]:
    """The mean of the figures, each centred and scaled by the cells alone: a hopeless control changes nothing."""
    scaled: dict[int, list[Tensor]] = {index: [] for index in figures}
    for name in figures[cells[0]]:
        reference = torch.stack([figures[index][name][0] for index in cells])
        spread = reference.std(correction=0)
        if not spread:  # one cell alone
            spread = reference.abs().mean()
        for index, values in figures.items():
            scaled[index].append((values[name] - reference.mean()) / spread.clamp(min=1e-12))
    return {index: _mean(values) for index, values in scaled.items()}


def _mean(values: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(values)).mean(0)


def is_worse(one: Tensor, other: Tensor) -> bool:
    """Whether the paired bootstrap interval of ``one − other`` lies above 0; lower is better."""
    return bool(torch.quantile((one - other)[1:], (1 - LEVEL) / 2) > 0)


def _distance(one: Sampled, published: Cell) -> float:
    return sum((ours - theirs) ** 2 for ours, theirs in zip(one.drawing.cell.numbers, published.numbers, strict=True))


def _verdict(table: _Table, best: int, drawn: Sequence[Sampled], sign: int) -> list[str]:
    """Whether the best cell beats what it must beat, each said. ``sign``: -1 where figures are better when higher."""
    baselines = [index for index in table.scores if drawn[index].drawing.kind == BASELINE]
    rivals = {
        "DPM-Solver++ at as many evaluations": (baselines, table.apart),
        "the few-step scheduler with no accelerator (λ = 0)": (table.controls, table.scores),
    }
    said = []
    for name, (indices, scores) in rivals.items():
        beaten = all(is_worse(scores[index], scores[best]) for index in indices)
        said.append(f"the best cell beats {name}" if beaten else f"NO CELL IS SHOWN TO BEAT {name}")
    for index in (index for index in table.figures if drawn[index].drawing.kind == FLOOR):
        limits = {name: Estimate.of(sign * values).high for name, values in table.figures[index].items()}
        if beyond := [name for name, limit in limits.items() if sign * float(table.figures[best][name][0]) > limit]:
            than = "worse than another draw of the teacher is" if sign < 0 else BEYOND
            said.append(f"by {' and '.join(beyond)} the best cell is {than}")
    return said

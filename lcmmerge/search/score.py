"""From samples to a choice: figures, z-scores, bootstrap intervals, the tie set, and the verdict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lcmmerge.errors import LcmMergeError
from lcmmerge.search.field import Strengths
from lcmmerge.search.objectives import Objective
from lcmmerge.search.statistics import LEVEL, Estimate, once, resamples
from lcmmerge.search.study import BASELINE, CELL, TEACHER, Drawn


@dataclass(frozen=True, slots=True)
class Row:
    """One drawing, scored. ``score``: the z-scored mean of ``figures``, lower is better; ``ties``: the paired bootstrap
    interval of its distance to the best cell's score holds 0. ``control``: a cell whose accelerator's λ is 0.
    """

    kind: str
    strengths: Strengths
    evaluations: int
    figures: Mapping[str, Estimate]
    score: Estimate | None
    ties: bool = False
    control: bool = False
    fault: str = ""

    def as_dict(self) -> dict[str, Any]:
        def parts(found: Estimate) -> list[float]:
            return [found.value, found.low, found.high]

        return {
            "kind": self.kind,
            "strengths": list(self.strengths),
            "evaluations": self.evaluations,
            "figures": {name: parts(figure) for name, figure in self.figures.items()},
            "score": parts(self.score) if self.score else None,
            "ties": self.ties,
            "control": self.control,
            "fault": self.fault,
        }


@dataclass(frozen=True, slots=True)
class Scored:
    """``best``: of the cells with the accelerator the one to take: of the tie set, the nearest to the published λ."""

    rows: tuple[Row, ...]
    best: Row
    verdict: tuple[str, ...]

    @property
    def ties(self) -> tuple[Row, ...]:
        return tuple(row for row in self.rows if row.ties)

    def as_dict(self) -> dict[str, Any]:
        rows = [row.as_dict() for row in self.rows]
        return {"best": list(self.best.strengths), "verdict": list(self.verdict), "rows": rows}


def score(
    drawn: Sequence[Drawn], objective: Objective, accelerator: int, published: Strengths, evaluations: Sequence[int]
) -> Scored:
    """``evaluations``: of the U-Net per image, for each of ``drawn``. Raises LcmMergeError where every cell failed."""
    teacher = next(one.samples for one in drawn if one.drawing.kind == TEACHER)
    if teacher is None:
        raise LcmMergeError("the teacher's samples are NaN", "the style model itself draws nothing: try --dtype fp32")
    whole = [index for index, one in enumerate(drawn) if one.samples and one.drawing.kind != TEACHER]
    cells = [index for index in whole if _is_cell(drawn[index], accelerator)]
    if not cells:
        raise LcmMergeError("no cell of the grid gave an image", "look at the faults in study.json; lower the λs")
    weights = torch.cat([once(len(teacher.latents)), resamples(len(teacher.latents))])
    figures = {index: objective.measure(drawn[index].samples, teacher) for index in whole}  # type: ignore[arg-type]
    values = {
        name: torch.stack([figures[index][name](weights) for index in whole]) for name in figures[whole[0]]
    }  # each [drawn, 1 + resamples]
    scores = _z_scored(values, [whole.index(index) for index in cells], objective)
    best = min(cells, key=lambda index: float(scores[whole.index(index), 0]))
    rows = []
    for index, one in enumerate(drawn):
        found = whole.index(index) if index in whole else None
        rows.append(
            _row(one, found, values, scores, whole.index(best), index in cells, accelerator, evaluations[index])
        )
    ties = [row for row in rows if row.ties]
    chosen = min(ties, key=lambda row: (_distance(row.strengths, published), row.score.value if row.score else 0.0))
    return Scored(tuple(rows), chosen, tuple(_verdict(rows, scores, whole, best, drawn, accelerator)))


def _is_cell(one: Drawn, accelerator: int) -> bool:
    return one.drawing.kind == CELL and one.drawing.strengths[accelerator] != 0


def _z_scored(values: Mapping[str, Tensor], cells: Sequence[int], objective: Objective) -> Tensor:
    """[drawn, 1 + resamples]; centred and scaled by the cells alone, so that a hopeless control changes nothing."""
    total = torch.zeros_like(next(iter(values.values())))
    for figure in values.values():
        reference = figure[list(cells), 0]
        spread = reference.std(correction=0) if len(cells) > 1 else reference.abs().mean()
        total += (figure - reference.mean()) / spread.clamp(min=1e-12)
    return total / len(values) * (-1 if objective.maximise else 1)


def _row(
    one: Drawn, found: int | None, values: Mapping[str, Tensor], scores: Tensor, best: int, is_cell: bool,
    accelerator: int, evaluations: int,
) -> Row:  # fmt: skip
    drawing = one.drawing
    control = drawing.kind == CELL and not is_cell and drawing.strengths[accelerator] == 0
    if found is None:
        return Row(drawing.kind, drawing.strengths, evaluations, {}, None, control=control, fault=one.fault)
    figures = {name: Estimate.of(float(figure[found, 0]), figure[found, 1:]) for name, figure in values.items()}
    estimate = Estimate.of(float(scores[found, 0]), scores[found, 1:])
    ties = is_cell and not is_worse(scores[found], scores[best])
    return Row(drawing.kind, drawing.strengths, evaluations, figures, estimate, ties, control)


def is_worse(one: Tensor, other: Tensor) -> bool:
    """Whether the paired bootstrap interval of ``one − other`` lies above 0."""
    return bool(torch.quantile((one - other)[1:], (1 - LEVEL) / 2) > 0)


def _distance(strengths: Strengths, published: Strengths) -> float:
    return sum((one - other) ** 2 for one, other in zip(strengths, published, strict=True))


def _verdict(
    rows: Sequence[Row], scores: Tensor, whole: Sequence[int], best: int, drawn: Sequence[Drawn], accelerator: int
) -> list[str]:
    """What the merge does not beat, in words; empty where it beats everything."""
    rivals = {"DPM-Solver++ at as many evaluations": [i for i in whole if drawn[i].drawing.kind == BASELINE]}
    controls = [index for index in whole if rows[index].control]
    rivals["the same scheduler with no accelerator (λ = 0)"] = controls
    found = []
    for name, indices in rivals.items():
        ours = scores[whole.index(best)]
        if any(not is_worse(scores[whole.index(index)], ours) for index in indices):
            found.append(f"no cell is shown to be better than {name}")
    return found

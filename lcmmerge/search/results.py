"""What a search found, and its files: study.json for programs, trials.csv for tables, sheet.png for the eye."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from typing import Any

from lcmmerge import __version__
from lcmmerge.merge.request import Request
from lcmmerge.sample.load import Pipeline
from lcmmerge.search.cost import Choice
from lcmmerge.search.diagnostics import Overlap
from lcmmerge.search.drawing import Drawn
from lcmmerge.search.order import Strengths
from lcmmerge.search.request import Prepared
from lcmmerge.search.score import Row, Scored
from lcmmerge.search.sheet import Tile, decode, sheet
from lcmmerge.search.statistics import Estimate
from lcmmerge.search.store import replace_with
from lcmmerge.search.study import BASELINE, CELL, CONTROL, TEACHER, Ask
from lcmmerge.search.winner import command, merge_of

VERSION = 1
JSON, CSV, SHEET = "study.json", "trials.csv", "sheet.png"


@dataclass(frozen=True, slots=True)
class Result:
    """``way``: how cells were drawn; None where all were drawn before."""

    prepared: Prepared
    scored: Scored
    way: Choice | None
    diagnostics: tuple[Overlap, ...]

    @property
    def merge(self) -> Request:
        """What was searched, at the λs found."""
        return merge_of(self.prepared.request.merge, self.prepared.plan, self.scored.best.strengths)

    @property
    def command(self) -> str:
        return command(self.merge)

    def as_dict(self) -> dict[str, Any]:
        """Plain data: what study.json holds."""
        return {
            "version": VERSION,
            "lcmmerge": __version__,
            "terms": list(self.prepared.names),
            "objective": self.prepared.request.objective,
            **self.scored.as_dict(),
            "command": self.command,
            "inputs": dict(self.prepared.inputs),
            "prompts": list(self.prepared.request.prompts),
            "way": self.way and self.way.as_dict(),
            "diagnostics": [found.as_dict() for found in self.diagnostics],
        }

    def write(self) -> None:
        """study.json and trials.csv. Raises OutputError."""
        work = self.prepared.request.work
        text = json.dumps(self.as_dict(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        replace_with(work / JSON, text.encode())
        replace_with(work / CSV, _csv(self.scored.rows, self.prepared.names).encode())

    def write_sheet(
        self, drawn: Sequence[Drawn], ask: Ask, pipeline: Pipeline, set_vae: Callable[[Strengths], None]
    ) -> None:
        """The same two jobs of every drawing. ``set_vae``: makes the pipeline's VAE a cell's. Raises OutputError."""
        jobs = sorted({0, len(ask.jobs) - 1})

        def tile(one: Drawn | None) -> Tile | None:
            if one is None or one.latents is None:
                return None
            set_vae(one.drawing.strengths)
            is_best = one.drawing.kind == CELL and one.drawing.strengths == self.scored.best.strengths
            return Tile(self._caption(one), decode(pipeline, one.latents[jobs]), is_best)

        beside: list[Drawn | None] = [one for one in drawn if one.drawing.kind in (TEACHER, BASELINE, CONTROL)]
        cells = {one.drawing.strengths: one for one in drawn if one.drawing.kind == CELL}
        rows = [beside, *_arranged(cells, ask)]
        replace_with(self.prepared.request.work / SHEET, sheet([[tile(one) for one in row] for row in rows]))

    def _caption(self, one: Drawn) -> str:
        """In ASCII: Pillow's own font has no more."""
        drawing = one.drawing
        if drawing.kind != CELL:
            return f"{drawing.kind}: {drawing.manner}"
        pairs = zip(self.prepared.names, drawing.strengths, strict=True)
        return ", ".join(f"{name} {strength:.3g}" for name, strength in pairs)


def _csv(rows: Sequence[Row], names: Sequence[str]) -> str:
    """A line per drawing; each estimate as three columns."""
    kept = list(dict.fromkeys(name for row in rows for name in row.figures))
    estimates = [*kept, "score", "style"]
    columns = [column for name in estimates for column in (name, f"{name} low", f"{name} high")]
    text = StringIO()
    writer = csv.writer(text, lineterminator="\n")
    flags = ("control", "ties", "front")
    writer.writerow(["kind", *(f"lambda {name}" for name in names), "manner", "evaluations", *columns, *flags, "fault"])
    for row in rows:
        found = {**row.figures, "score": row.score, "style": row.style}
        values = [value for name in estimates for value in _cells(found.get(name))]
        marks = [int(getattr(row, flag)) for flag in flags]
        writer.writerow([row.kind, *row.strengths, row.manner, row.evaluations, *values, *marks, row.fault])
    return text.getvalue()


def _cells(estimate: Estimate | None) -> Sequence[object]:
    return estimate.as_list() if estimate else ["", "", ""]


def _arranged(cells: Mapping[Strengths, Drawn], ask: Ask) -> list[list[Drawn | None]]:
    """By the accelerator's λ, a column for each, and the others'; where that is no grid, in order."""
    columns = sorted({strengths[ask.accelerator] for strengths in cells})
    rows = sorted({ask.without_accelerator(strengths) for strengths in cells})
    if len(columns) * len(rows) > 2 * len(cells):
        inorder = [cells[strengths] for strengths in sorted(cells)]
        side = max(4, round(len(inorder) ** 0.5))
        return [[*inorder[begin : begin + side]] for begin in range(0, len(inorder), side)]
    before, after = slice(ask.accelerator), slice(ask.accelerator + 1, None)
    return [[cells.get((*row[before], value, *row[after])) for value in columns] for row in rows]

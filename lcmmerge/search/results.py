"""What a search found, and its files: study.json for programs, trials.csv for tables, sheet.png for the eye."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
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
            "inputs": self.prepared.inputs(),
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


def write_sheet(
    work: Path, drawn: Sequence[Drawn], ask: Ask, best: Row, pipeline: Pipeline, set_vae: Callable[[Strengths], None]
) -> None:
    """``set_vae``: makes the pipeline's VAE a cell's. The same two jobs of every cell. Raises OutputError."""
    jobs = sorted({0, len(ask.jobs) - 1})

    def tile(one: Drawn, caption: str) -> Tile | None:
        if one.latents is None:
            return None
        set_vae(one.drawing.strengths)
        is_best = one.drawing.kind == CELL and one.drawing.strengths == best.strengths
        return Tile(caption, decode(pipeline, one.latents[jobs]), is_best)

    beside = [tile(one, f"{one.drawing.kind}: {one.drawing.manner}") for one in drawn if one.drawing.kind in (TEACHER, BASELINE, CONTROL)]
    cells = {one.drawing.strengths: one for one in drawn if one.drawing.kind == CELL}
    columns = sorted({strengths[ask.accelerator] for strengths in cells})
    others = sorted({ask.without_accelerator(strengths) for strengths in cells})
    if len(columns) * len(others) > 2 * len(cells):  # no grid: in the order of their λs
        tiles = [tile(cells[strengths], _caption(strengths)) for strengths in sorted(cells)]
        side = max(4, round(len(tiles) ** 0.5))
        rows = [tiles[begin : begin + side] for begin in range(0, len(tiles), side)]
    else:
        rows = [
            [
                tile(found, _caption(found.drawing.strengths)) if found else None
                for value in columns
                for found in [cells.get((*other[: ask.accelerator], value, *other[ask.accelerator + 1 :]))]
            ]
            for other in others
        ]
    replace_with(work / SHEET, sheet([beside, *rows]))


def _caption(strengths: Strengths) -> str:
    return "λ " + "  ".join(f"{strength:.3g}" for strength in strengths)

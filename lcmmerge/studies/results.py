"""The files of what a search found: report.html and sheets for the eye, trials.csv, and study.json for programs."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from io import StringIO
from pathlib import Path

from lcmmerge.sample.load import Pipeline
from lcmmerge.studies.arrangement import Arrangement, label
from lcmmerge.studies.drawing import Drawn
from lcmmerge.studies.order import Strengths
from lcmmerge.studies.pictures import Pictures, Shown
from lcmmerge.studies.report import report
from lcmmerge.studies.result import Result
from lcmmerge.studies.score import Row
from lcmmerge.studies.sheet import Tile, sheets
from lcmmerge.studies.statistics import Estimate
from lcmmerge.studies.study import CELL, FLOOR, Ask
from lcmmerge.tensors.staging import replace_with

JSON, CSV, REPORT, SHEET = "study.json", "trials.csv", "report.html", "sheet.png"


def write(result: Result) -> None:
    """study.json and trials.csv. Raises OutputError."""
    work = result.prepared.request.work
    text = json.dumps(result.as_dict(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    replace_with(work / JSON, text.encode())
    replace_with(work / CSV, _csv(result.scored.rows, result.prepared.names).encode())


def write_pictures(
    result: Result, drawn: Sequence[Drawn], ask: Ask, pipeline: Pipeline, set_vae: Callable[[Strengths], None]
) -> None:
    """report.html, sheet.png, sheet-2.png, …. ``set_vae``: makes the VAE a cell's. Raises OutputError."""
    seen = [index for index, one in enumerate(drawn) if one.latents is not None and one.drawing.kind != FLOOR]
    shown = Shown.of(ask.rungs[0], len(seen), result.prepared.size)  # for which all cells are drawn
    pictures: dict[int, Pictures] = {}
    for index in seen:
        drawing, latents = drawn[index].drawing, drawn[index].latents
        assert latents is not None
        set_vae(drawing.strengths)
        places = [drawing.jobs.index(ask.jobs[job]) for job in shown.jobs]
        pictures[index] = Pictures.of(pipeline, latents[places], shown)
    arrangement = Arrangement.of((row.strengths for row in result.scored.rows if row.kind == CELL), ask.accelerator)
    work = result.prepared.request.work
    urls = [pictures[index].urls if index in pictures else () for index in range(len(drawn))]
    replace_with(work / REPORT, report(result, arrangement, shown, urls))
    found = _sheets(result, arrangement, pictures)
    for old in work.glob("sheet-*.png"):
        old.unlink()
    for number, page in enumerate(found, 1):
        replace_with(work / (SHEET if number == 1 else f"sheet-{number}.png"), page)


def _sheets(result: Result, arrangement: Arrangement, pictures: Mapping[int, Pictures]) -> list[bytes]:
    """Two images of every drawing."""
    rows = result.scored.rows

    def tile(index: int) -> Tile:
        row = rows[index]
        caption = label(result.prepared.names, row.strengths) if row.kind == CELL else f"{row.kind}: {row.manner}"
        return Tile(caption, pictures[index].thumbnails, row is result.scored.best)

    tiles = {rows[index].strengths: tile(index) for index in pictures if rows[index].kind == CELL}
    beside = [tile(index) for index in pictures if rows[index].kind != CELL]
    return sheets(beside, [[tiles.get(place) if place else None for place in row] for row in arrangement.places])


def files_of(work: Path) -> list[Path]:
    """What a search wrote into its folder for people and programs."""
    pages = sorted(work.glob("sheet*.png"), key=lambda path: (len(path.name), path.name))
    return [work / REPORT, *pages, work / CSV, work / JSON]


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

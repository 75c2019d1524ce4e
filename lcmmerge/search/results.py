"""The files of what a search found: report.html and sheets for the eye, trials.csv, and study.json for programs."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Mapping, Sequence
from io import StringIO
from pathlib import Path

from lcmmerge.draw.load import Pipeline
from lcmmerge.refs.files import inside
from lcmmerge.search.drawing import Sampled
from lcmmerge.search.order import Arrangement, Cell, label
from lcmmerge.search.pictures import Pictures, Shown
from lcmmerge.search.report import report
from lcmmerge.search.request import DATABASE, LATENTS
from lcmmerge.search.result import Result
from lcmmerge.search.score import ScoreRow
from lcmmerge.search.sheet import SheetTile, sheets
from lcmmerge.search.statistics import Estimate
from lcmmerge.search.study import CELL, FLOOR, Ask
from lcmmerge.tensors.made import put, refuse_taken

JSON, CSV, REPORT, SHEET = "study.json", "trials.csv", "report.html", "sheet.png"
SHEETS = re.compile(r"sheet(-[1-9][0-9]*)?\.png")


def check_folder(work: Path, *, force: bool) -> None:
    """Refuse before the search what would be replaced after it, and a folder that leads elsewhere.

    Raises OutputError, FormatError.
    """
    for name in (DATABASE, LATENTS):
        inside(work, name)
    if not force:
        refuse_taken(work, [path.name for path in files_of(work)])


def write(result: Result) -> None:
    """study.json and trials.csv. Raises OutputError."""
    text = json.dumps(result.as_dict(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    files = {JSON: text.encode(), CSV: _csv(result.scored.rows, result.prepared.names).encode()}
    put(result.prepared.request.work, files, force=result.prepared.request.force)


def write_pictures(
    result: Result, drawn: Sequence[Sampled], ask: Ask, pipeline: Pipeline, set_vae: Callable[[Cell], None]
) -> None:
    """report.html, sheet.png, sheet-2.png, …. ``set_vae``: makes the VAE a cell's. Raises OutputError."""
    seen = [index for index, one in enumerate(drawn) if one.latents is not None and one.drawing.kind != FLOOR]
    shown = Shown.of(ask.rungs[0], len(seen), result.prepared.size)  # for which all cells are drawn
    pictures: dict[int, Pictures] = {}
    for index in seen:
        drawing, latents = drawn[index].drawing, drawn[index].latents
        assert latents is not None
        set_vae(drawing.cell)
        places = [drawing.jobs.index(ask.jobs[job]) for job in shown.jobs]
        pictures[index] = Pictures.of(pipeline, latents[places], shown)
    arrangement = Arrangement.of((row.cell for row in result.scored.rows if row.kind == CELL), ask.accelerator)
    urls = [pictures[index].urls if index in pictures else () for index in range(len(drawn))]
    files = {REPORT: report(result, arrangement, shown, urls)}
    for number, page in enumerate(_sheets(result, arrangement, pictures), 1):
        files[SHEET if number == 1 else f"sheet-{number}.png"] = page
    work = result.prepared.request.work
    stale = [path.name for path in files_of(work) if SHEETS.fullmatch(path.name) and path.name not in files]
    put(work, files, stale=stale, force=result.prepared.request.force)


def _sheets(result: Result, arrangement: Arrangement, pictures: Mapping[int, Pictures]) -> list[bytes]:
    """Two images of every drawing."""
    rows = result.scored.rows

    def tile(index: int) -> SheetTile:
        row = rows[index]
        caption = label(result.prepared.names, row.cell.numbers) if row.kind == CELL else f"{row.kind}: {row.manner}"
        return SheetTile(caption, pictures[index].thumbnails, row is result.scored.best)

    tiles = {rows[index].cell: tile(index) for index in pictures if rows[index].kind == CELL}
    beside = [tile(index) for index in pictures if rows[index].kind != CELL]
    return sheets(beside, [[tiles.get(place) if place else None for place in row] for row in arrangement.places])


def files_of(work: Path) -> list[Path]:
    """What a search wrote into its folder for people and programs."""
    sheets = (path for path in work.glob("sheet*.png") if SHEETS.fullmatch(path.name))
    pages = sorted(sheets, key=lambda path: (len(path.name), path.name))
    return [work / REPORT, *pages, work / CSV, work / JSON]


def _csv(rows: Sequence[ScoreRow], names: Sequence[str]) -> str:
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
        writer.writerow([row.kind, *row.cell.numbers, row.manner, row.evaluations, *values, *marks, row.fault])
    return text.getvalue()


def _cells(estimate: Estimate | None) -> Sequence[object]:
    return estimate.as_list() if estimate else ["", "", ""]

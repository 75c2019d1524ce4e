"""report.html: a study as one page, with its images inside, that asks no server for anything.

Prompts, names and faults come from outside. They reach the page as JSON, and its script writes them as text; the policy
in the page's head lets nothing run but that script, and nothing load but the images in it.
"""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256
from html import escape
from importlib.resources import files
from string import Template
from typing import Any

from lcmmerge.search.order import Arrangement, label
from lcmmerge.search.pictures import Shown
from lcmmerge.search.result import Result
from lcmmerge.search.score import ScoreRow
from lcmmerge.search.study import CELL, TEACHER
from lcmmerge.version import __version__

WON, LOST, NOTED = "won", "lost", "noted"
Images = Sequence[Sequence[str]]  # of each of a study's rows the chosen images as URLs; none where it has none


def report(result: Result, arrangement: Arrangement, shown: Shown, images: Images) -> bytes:
    """HTML."""
    page = files("lcmmerge.search") / "page"
    style, *scripts = ((page / name).read_text("utf-8") for name in ("page.css", "charts.js", "page.js"))
    script = "".join(scripts)
    study = json.dumps(_study(result, arrangement, shown, images), ensure_ascii=False, allow_nan=False)
    said = sorted(map(_said, result.scored.verdict), key=lambda item: item[0] != LOST)
    parts = {
        "title": escape(f"λ search: {label(result.prepared.names, result.scored.best.cell.numbers)}"),
        "style": style,
        "style_hash": _hash(style),
        "script": script,
        "script_hash": _hash(script),
        "verdict": "\n".join(f'<li class="{tone}">{escape(text)}.</li>' for tone, text in said),
        "facts": _pairs("<div><dt>{}</dt><dd>{}</dd></div>", _facts(result)),
        "inputs": _pairs("<tr><th scope=row>{}</th><td>{}</td></tr>", _inputs(result)),
        "images": escape(_of_images(result, shown)),
        "version": escape(__version__),
        "study": study.replace("<", "\\u003c"),  # no tag can begin in it, not even the one that ends it
    }
    return Template((page / "page.html").read_text("utf-8")).substitute(parts).encode()


def _hash(text: str) -> str:
    """As a Content-Security-Policy names what may run: https://www.w3.org/TR/CSP3/#grammardef-hash-source."""
    return f"sha256-{b64encode(sha256(text.encode()).digest()).decode()}"


def _pairs(form: str, pairs: Iterable[tuple[str, str]]) -> str:
    return "\n".join(form.format(escape(name), escape(text)) for name, text in pairs)


def _said(sentence: str) -> tuple[str, str]:
    """How a sentence of the verdict is to be taken, and the sentence."""
    tone = WON if sentence.startswith("the best cell beats") else LOST if sentence.startswith("NO CELL") else NOTED
    return tone, sentence[0].upper() + sentence[1:]


def _study(result: Result, arrangement: Arrangement, shown: Shown, images: Images) -> Mapping[str, Any]:
    """What the page's script draws."""
    prepared, rows = result.prepared, result.scored.rows
    ask, names = prepared.ask(1), prepared.names
    numbers = {row.cell: index for index, row in enumerate(rows) if row.kind == CELL}
    others = [name for number, name in enumerate(names) if number != ask.accelerator]
    return {
        "terms": names,
        "accelerator": ask.accelerator,
        "varied": [number for number in range(len(names)) if len({cell.numbers[number] for cell in numbers}) > 1],
        "figures": _figures(result),
        "rows": [_row(row, result, urls) for row, urls in zip(rows, images, strict=True)],
        "best": rows.index(result.scored.best),
        "shown": [{"prompt": ask.jobs[job].prompt, "seed": ask.jobs[job].seed} for job in shown.jobs],
        "grid": {
            "columns": [f"{value:.3g}" for value in arrangement.columns],
            "rows": [label(others, row) for row in arrangement.rows],
            "places": [[numbers[place] if place else None for place in row] for row in arrangement.places],
        },
    }


def _figures(result: Result) -> list[Mapping[str, Any]]:
    """``better``: 1 where higher is better, else -1."""
    name, objective = result.prepared.request.objective, result.prepared.objective
    figures = dict.fromkeys(figure for row in result.scored.rows for figure in row.figures)
    sign = 1 if objective.maximise else -1
    return [
        {"name": "score", "about": f"the mean of the figures of {name}, z-scored over the cells", "better": -1},
        {"name": "style", "about": "how far the style is off, apart from the score", "better": -1},
        *({"name": figure, "about": objective.title, "better": sign} for figure in figures),
    ]


def _row(row: ScoreRow, result: Result, urls: Sequence[str]) -> Mapping[str, Any]:
    """``command`` is empty for what is no merge of the style and the accelerator."""
    is_cell = row.kind == CELL
    marks = {
        "best": row is result.scored.best,
        "tie": row.ties,
        "front": row.front,
        "no accelerator": row.control,
        f"stopped after {row.images} images": row.stopped,
    }
    estimates = {"score": row.score, "style": row.style, **row.figures}
    return {
        "name": label(result.prepared.names, row.cell.numbers) if is_cell else f"{row.kind}, {row.manner}",
        "kind": row.kind,
        "lambda": row.cell.numbers,
        "evaluations": row.evaluations,
        "estimates": {name: estimate.as_list() for name, estimate in estimates.items() if estimate},
        "marks": [mark for mark, holds in marks.items() if holds],
        "compared": is_cell and not (row.control or row.stopped or row.fault),
        "fault": row.fault,
        "command": result.prepared.merge(row.cell).command() if is_cell and not row.control else "",
        "images": urls,
    }


def _facts(result: Result) -> Iterable[tuple[str, str]]:
    request, rows = result.prepared.request, result.scored.rows
    cells = [row for row in rows if row.kind == CELL and not row.control]
    lost = {"failed": sum(bool(row.fault) for row in cells), "stopped early": sum(row.stopped for row in cells)}
    teacher = next(row for row in rows if row.kind == TEACHER)
    yield "cells", ", ".join([str(len(cells)), *(f"{count} {how}" for how, count in lost.items() if count)])
    yield "tied with the best", str(len(result.scored.ties) - 1)
    yield "a cell", f"{cells[0].manner}, {cells[0].evaluations} evaluation{'s' if cells[0].evaluations > 1 else ''}"
    yield "images of each", f"{len(request.prompts)} prompts × {request.count}"
    yield "teacher", f"the style model, {teacher.manner}"


def _inputs(result: Result) -> Iterable[tuple[str, str]]:
    for name, found in result.prepared.inputs.items():
        yield name, found if isinstance(found, str) else json.dumps(found)


def _of_images(result: Result, shown: Shown) -> str:
    width, height = shown.size
    size = "as drawn" if shown.size == result.prepared.size else "shrunk to bound the file’s size"
    count = len(result.prepared.ask(1).jobs)
    return f"{len(shown.jobs)} of each drawing’s {count} images are here, {size}: {width} × {height}."

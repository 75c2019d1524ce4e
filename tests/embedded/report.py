"""The claim's tables and pictures: ``claim.json``, and what stands between the marks of the model's README."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from embedded.claim import (
    BUDGETS,
    LCM_GRID,
    SOLVERS,
    STYLE_BUDGETS,
    STYLE_GRID,
    TEACHER,
    TEST_SEED,
    Bench,
    Cell,
    Estimate,
    base_table,
    geometry,
    references,
    search,
    style_table,
)  # fmt: skip
from embedded.folder import Folder, prompts
from embedded.merging import merged, task_vector
from embedded.sampling import Method, sample
from embedded.scenes import STYLES
from embedded.vae import decoded
from lcmmerge.output import Output

Terms = dict[str, float]
COLOURS = 64  # of a picture, to keep its file small
END = "<!-- end -->"


def write(folder: Folder, output: Output) -> None:
    """Measure everything; minutes."""
    unet = folder.load_unet()
    judge = folder.load_judge()
    vectors = {name: task_vector(folder.lora(name), unet) for name in folder.loras}
    bench = Bench(unet, folder.load_vae(), prompts(), judge, vectors, references(judge))
    tables: dict[str, str] = {}
    facts: dict[str, Any] = {}
    found: dict[str, Terms] = {}
    every: dict[str, list[Cell]] = {}
    for style in STYLES:
        grid = search(bench, style)
        one, two, _ = min(grid, key=lambda entry: entry[2].features[0])
        found[style] = {style: one, "lcm": two}
        output.note(f"{style}: λ1 {one}, λ2 {two}")
        tables[f"grid {style}"] = grid_table(grid)
        every[style] = cells = list(style_table(bench, style, found[style]))
        tables[style] = pivot(cells, STYLE_BUDGETS)
        facts[style] = {
            "found": found[style],
            "geometry": geometry(bench, style),
            "cells": [as_json(cell) for cell in cells],
            "grid": [[one, two, as_json(cell)] for one, two, cell in grid],
        }
        picture(bench, style, found[style]).save(folder.path / f"{style}.png", optimize=True)
        output.note(*tables[style].splitlines())
    cells = list(base_table(bench))
    tables["base"] = pivot(cells, BUDGETS)
    facts["base"] = [as_json(cell) for cell in cells]
    tables["universal"] = "\n".join(universal_table(every))
    tables["geometry"] = "\n".join(geometry_table(facts))
    fill(folder.path / "README.md", tables)
    folder.claim.write_text(json.dumps(facts, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def as_json(cell: Cell) -> dict[str, Any]:
    method = cell.method
    how = {"solver": method.solver, "steps": method.steps, "guidance": method.guidance} if method else {}
    values = {"accuracy": cell.accuracy, "features": cell.features, "pixels": cell.pixels}
    rounded = {name: [round(number, 4) for number in value] for name, value in values.items()}
    return {"model": cell.model, **how, "evaluations": cell.evaluations, **rounded}


def pivot(cells: Sequence[Cell], budgets: Sequence[int]) -> str:
    """A row for each way of drawing, a column for each number of evaluations."""
    single = [cell for cell in cells if cell.method is None or cell.method == TEACHER]
    rows: dict[str, dict[int, Cell]] = {}
    for cell in cells:
        if cell not in single:
            rows.setdefault(_label(cell), {})[cell.evaluations] = cell
    lines = [f"| evaluations | {' | '.join(map(str, budgets))} |", "| --- |" + " --- |" * len(budgets)]
    for label, found in rows.items():
        lines.append(f"| {label} | {' | '.join(_entry(found.get(budget)) for budget in budgets)} |")
    lines += ["", *(f"- {_label(cell)}: {_entry(cell)}" for cell in single)]
    return "\n".join(lines)


def grid_table(grid: Sequence[tuple[float, float, Cell]]) -> str:
    """Rows λ1, columns λ2."""
    cells = {(one, two): cell for one, two, cell in grid}
    lines = [f"| λ1 \\ λ2 | {' | '.join(map(str, LCM_GRID))} |", "| --- |" + " --- |" * len(LCM_GRID)]
    for one in STYLE_GRID:
        row = (cells[one, two] for two in LCM_GRID)
        lines.append(f"| {one} | {' | '.join(f'{cell.accuracy[0]:.2f} · {cell.features[0]:.2f}' for cell in row)} |")
    return "\n".join(lines)


def universal_table(every: dict[str, list[Cell]]) -> Iterator[str]:
    """The same LCM-LoRA over each style, and of the solvers the greatest accuracy and the least distance."""
    yield "| style | evaluations | merge at (1, 1) | merge at the λ found | solvers' best accuracy | least distance |"
    yield "| --- " * 6 + "|"
    for style, cells in every.items():
        for budget in STYLE_BUDGETS:
            same = [cell for cell in cells if cell.evaluations == budget]
            merges = [next(cell for cell in same if cell.model == name) for name in ("merge at (1, 1)", "merge")]
            solved = [cell for cell in same if cell.method and cell.method.solver in SOLVERS]
            accuracy = max(cell.accuracy[0] for cell in solved)
            distance = min(cell.features[0] for cell in solved)
            entries = " | ".join(f"{cell.accuracy[0]:.2f} · {cell.features[0]:.2f}" for cell in merges)
            yield f"| {style} | {budget} | {entries} | {accuracy:.2f} | {distance:.2f} |"


def geometry_table(facts: dict[str, Any]) -> Iterator[str]:
    yield "| style | ‖τ′‖/‖W‖ | ‖τ_LCM‖/‖W‖ | cos(τ′, τ_LCM), mean | greatest |"
    yield "| --- | --- | --- | --- | --- |"
    for style in STYLES:
        values = " | ".join(f"{value:.3f}" for value in facts[style]["geometry"].values())
        yield f"| {style} | {values} |"


def picture(bench: Bench, style: str, found: Terms) -> Image.Image:
    """The ten digits: the merge at 4, 2, 1 evaluations, DPM-Solver++ of the style at 4 and 2, the teacher."""
    rows = [
        (found, Method("LCM", 4)),
        (found, Method("LCM", 2)),
        (found, Method("LCM", 1)),
        ({style: 1.0}, Method("DPM-Solver++", 4)),
        ({style: 1.0}, Method("DPM-Solver++", 2)),
        ({style: 1.0}, TEACHER),
    ]
    digits = torch.arange(10)
    drawn = []
    for terms, method in rows:
        unet = merged(bench.unet, terms, bench.vectors)
        drawn.append(decoded(bench.vae, sample(unet, bench.prompts, digits, method, TEST_SEED)))
    pixels = ((torch.stack(drawn) + 1) * 127.5).round().byte().permute(0, 3, 1, 4, 2)
    return Image.fromarray(pixels.reshape(len(rows) * 64, 640, 3).numpy()).quantize(COLOURS)


def fill(readme: Path, tables: dict[str, str]) -> None:
    """Put each table between ``<!-- NAME -->`` and ``<!-- end -->``; without a README, write the tables alone."""
    marks = "\n".join(f"<!-- {name} -->\n{END}\n" for name in tables)
    text = readme.read_text(encoding="utf-8") if readme.exists() else marks
    for name, table in tables.items():
        before, mark, rest = text.partition(f"<!-- {name} -->\n")
        text = before + mark + (f"{table}\n{END}" + rest.partition(END)[2] if mark else rest)
    readme.write_text(text, encoding="utf-8")


def _label(cell: Cell) -> str:
    if cell.method is None:
        return cell.model
    guided = f", guidance {cell.method.guidance:g}" if cell.method.guidance > 1 else ""
    steps = f", {cell.method.steps} steps" if cell.method == TEACHER else ""
    return f"{cell.model}: {cell.method.solver}{steps}{guided}"


def _entry(cell: Cell | None) -> str:
    return f"{_interval(cell.accuracy)} · {_interval(cell.features)} · {cell.pixels[0]:.2f}" if cell else ""


def _interval(value: Estimate) -> str:
    middle, low, high = value
    return f"{middle:.2f} ±{max(high - middle, middle - low):.2f}"

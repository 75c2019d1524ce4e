"""The ``search`` section: how good the λs of ``fuse`` are, among those around them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lcmmerge.errors import RecipeError
from lcmmerge.merge.request import Request
from lcmmerge.output import Output
from lcmmerge.recipe.builds import Build, weights_text
from lcmmerge.recipe.manifest import write_text
from lcmmerge.recipe.schema import Search

if TYPE_CHECKING:
    from lcmmerge.search.request import SearchRequest

VERSION = 1  # of what a study measures; a change makes finished ones stale
INPUTS = "inputs.json"
STYLE, ACCELERATOR = "style", "lcm"  # as merge.request names its terms


def search(build: Build, section: Search, work: Path, output: Output) -> tuple[list[Path], dict[str, Any]]:
    """Search in the folder ``work``, where a study that was cut goes on; its files, and what the checks look at.

    Raises RecipeError for terms that cannot be searched, and what ``search.run.search`` does.
    """
    from lcmmerge.sample import quiet_libraries

    quiet_libraries()
    from lcmmerge.search.results import CSV, JSON, SHEET
    from lcmmerge.search.run import search as run

    names = term_names(build)
    request = _request(build, section, work, names)
    _begin(request, output)
    result = run(request, output)
    back = {ours: recipe for recipe, ours in names.items()}
    terms = [back[name] for name in result.prepared.names]
    chosen = tuple(build.cell.fuse.terms[name].strength for name in terms)
    scores = {row.strengths: row.score.value for row in result.scored.rows if row.kind == "cell" and row.score}
    figures = {
        "best": dict(zip(terms, result.scored.best.strengths, strict=True)),
        "ties": [dict(zip(terms, row.strengths, strict=True)) for row in result.scored.ties],
        "verdict": list(result.scored.verdict),
        "search_regret": scores[chosen] - min(scores.values()) if chosen in scores else None,
    }
    return [work / name for name in (JSON, CSV, SHEET)], figures


def _begin(request: SearchRequest, output: Output) -> None:
    """Remove a study of other inputs: this one takes its place."""
    from lcmmerge.search.request import prepare

    inputs = json.dumps(prepare(request, output.warn).inputs, indent=2, sort_keys=True)
    begun = request.work / INPUTS
    if begun.exists() and begun.read_text("utf-8") == inputs:
        return
    shutil.rmtree(request.work, ignore_errors=True)
    request.work.mkdir(parents=True)
    write_text(begun, inputs)


def _request(build: Build, section: Search, work: Path, names: Mapping[str, str]) -> SearchRequest:
    """Raises RecipeError where the grid speaks of no term, or the size makes no sense."""
    from lcmmerge.sample.jobs import parse_size
    from lcmmerge.search.request import SearchRequest

    terms, paths = build.cell.fuse.terms, {role: str(item.path) for role, item in build.inputs.items()}
    if strange := [name for name in section.grid if name not in names]:
        raise RecipeError(f"search.grid.{strange[0]}: no such term", f"the terms are {', '.join(names)}")
    try:
        size = parse_size(section.size) if section.size else None
    except ValueError as error:
        raise RecipeError(f"search.size: {error}", "such as 512x512") from None
    found = {ours: name for name, ours in names.items()}
    style, lcm = found.get(STYLE), found[ACCELERATOR]
    kind = build.inputs[f"terms.{lcm}"].found.accelerator
    merge = Request(
        paths["base"],
        style=paths[f"terms.{style}"] if style else None,
        lcm=paths[f"terms.{lcm}"],
        style_base=paths.get(f"terms.{style}.tuned_from"),
        block_weights={names[name]: spec for name, term in terms.items() if (spec := weights_text(term))},
        variant=build.inputs["base"].found.locked.variant,
        config_from=paths.get("config_from"),
        accelerator=kind.name if kind else None,
    )
    # The λs of `fuse` are on every axis, so that their own cell is scored too.
    axes = {names[name]: tuple(sorted({*section.grid.get(name, ()), terms[name].strength})) for name in names}
    device = None if build.settings.device == "cpu" else build.settings.device
    fields = section.model_dump(include={"steps", "guidance", "seed", "batch", "objective"})
    return SearchRequest(
        merge, work, tuple(section.prompts), axes, seeds=section.count, size=size, device=device, **fields
    )


def term_names(build: Build) -> dict[str, str]:
    """The recipe's names of the style and of the accelerator → the search's. Raises RecipeError."""
    terms = build.cell.fuse.terms
    fast = [name for name in terms if build.inputs[f"terms.{name}"].found.accelerator]
    others = [name for name in terms if name not in fast]
    if len(fast) != 1 or len(others) > 1:
        raise RecipeError(
            f"search: {len(fast)} of the terms are accelerators and {len(others)} are not, and it wants one and one",
            "say `accelerator:` of the source that is one",
        )
    return {**dict.fromkeys(others, STYLE), fast[0]: ACCELERATOR}

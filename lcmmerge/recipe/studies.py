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
from lcmmerge.recipe.schema import Search
from lcmmerge.tensors.staging import write_text

if TYPE_CHECKING:
    from lcmmerge.studies.request import Prepared, SearchRequest

VERSION = 1  # of what a study measures; a change makes finished ones stale
INPUTS = "inputs.json"
STYLE, ACCELERATOR = "style", "lcm"  # as merge.request names its terms
FIELDS = {"steps", "guidance", "seed", "batch", "objective", "optimize", "front", "halving"}  # as the search has them


def search(build: Build, section: Search, work: Path, output: Output) -> tuple[list[Path], dict[str, Any]]:
    """Search in the folder ``work``, where a study that was cut goes on; its files, and what the checks look at.

    Raises RecipeError for terms that cannot be searched, and what ``studies.run.search_prepared`` does.
    """
    from lcmmerge.sample import quiet_libraries

    quiet_libraries()
    from lcmmerge.studies.request import prepare
    from lcmmerge.studies.results import files_of
    from lcmmerge.studies.run import search_prepared

    names = term_names(build)
    prepared = prepare(_request(build, section, work, names), output.warn)
    _begin(prepared)
    result = search_prepared(prepared, output)
    back = {ours: recipe for recipe, ours in names.items()}
    plan, blocks = result.prepared.plan, result.prepared.blocks
    terms = [back[term.name] for term in plan.terms]
    numbers = [*terms, *(f"{terms[axis.term]}@{axis.name.partition('@')[2]}" for axis in blocks)]
    chosen = (*(build.cell.fuse.terms[name].strength for name in terms), *(1.0 for _ in blocks))
    rows = [row for row in result.scored.rows if row.kind == "cell" and row.score]
    scores = {row.strengths: row.score.value for row in rows if row.score}
    least = min(scores[row.strengths] for row in rows if not row.stopped)
    figures = {
        "best": dict(zip(numbers, result.scored.best.strengths, strict=True)),
        "ties": [dict(zip(numbers, row.strengths, strict=True)) for row in result.scored.ties],
        "verdict": list(result.scored.verdict),
        "search_regret": scores[chosen] - least if chosen in scores else None,
    }
    return files_of(work), figures


def _begin(prepared: Prepared) -> None:
    """Remove a study of other inputs: this one takes its place."""
    inputs = json.dumps(dict(prepared.inputs), indent=2, sort_keys=True)
    begun = prepared.request.work / INPUTS
    if begun.exists() and begun.read_text("utf-8") == inputs:
        return
    shutil.rmtree(prepared.request.work, ignore_errors=True)
    prepared.request.work.mkdir(parents=True)
    write_text(begun, inputs)


def _request(build: Build, section: Search, work: Path, names: Mapping[str, str]) -> SearchRequest:
    """Raises RecipeError where the grid or the blocks speak of no term, or the size makes no sense."""
    from lcmmerge.sample.jobs import parse_size
    from lcmmerge.studies.blocks import Factors
    from lcmmerge.studies.request import SearchRequest

    terms = build.cell.fuse.terms
    # Not their paths: what was baked before may have left the Hub's cache since.
    references = {role: item.found.reference for role, item in build.inputs.items()}
    asked = {**dict.fromkeys(section.grid, "grid"), **dict.fromkeys(section.blocks, "blocks")}
    if strange := [name for name in asked if name not in names]:
        where = f"search.{asked[strange[0]]}.{strange[0]}"
        raise RecipeError(f"{where}: no such term", f"the terms are {', '.join(names)}")
    try:
        size = parse_size(section.size) if section.size else None
    except ValueError as error:
        raise RecipeError(f"search.size: {error}", "such as 512x512") from None
    found = {ours: name for name, ours in names.items()}
    style, lcm = found.get(STYLE), found[ACCELERATOR]
    kind = build.inputs[f"terms.{lcm}"].found.accelerator
    merge = Request(
        references["base"],
        style=references[f"terms.{style}"] if style else None,
        lcm=references[f"terms.{lcm}"],
        tuned_from=references.get(f"terms.{style}.tuned_from"),
        block_weights={names[name]: spec for name, term in terms.items() if (spec := weights_text(term))},
        variant=build.inputs["base"].found.locked.variant,
        config_from=references.get("config_from"),
        accelerator=kind.name if kind else None,
    )
    # The λs of `fuse`, and factors of 1, are on every axis, so that their own cell is scored too.
    blocks = {
        names[name]: {
            span: Factors(min(values), max(values), tuple(sorted({*values, 1.0}))) for span, values in spans.items()
        }
        for name, spans in section.blocks.items()
    }
    axes = {names[name]: tuple(sorted({*section.grid.get(name, ()), terms[name].strength})) for name in names}
    device = None if build.settings.device == "cpu" else build.settings.device
    fields = section.model_dump(include=FIELDS) | {"blocks": blocks, "size": size, "device": device}
    return SearchRequest(merge, work, tuple(section.prompts), axes, count=section.count, **fields)


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

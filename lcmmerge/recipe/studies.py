"""The ``search`` section: how good the λs of ``fuse`` are, among those around them."""

from __future__ import annotations

import json
import shutil
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lcmmerge.errors import RecipeError
from lcmmerge.merge.spec import Merge
from lcmmerge.output import Output
from lcmmerge.recipe.builds import Build
from lcmmerge.recipe.schema import Search
from lcmmerge.refs.files import read_text
from lcmmerge.tensors.made import record_all
from lcmmerge.tensors.staging import write_text

if TYPE_CHECKING:
    from lcmmerge.search.request import PreparedSearch, SearchRequest

VERSION = 1  # of what a study measures; a change makes finished ones stale
INPUTS = "inputs.json"
FIELDS = {"steps", "guidance", "seed", "batch", "objective", "optimize", "front", "halving"}  # as the search has them


def search(build: Build, section: Search, work: Path, before: Path, output: Output) -> dict[str, Any]:
    """Search in the folder ``work``, where a study that was cut goes on; what the checks look at.

    ``before``: the study that it is to replace, whose images are taken where they depend on the same.

    Raises RecipeError for terms that cannot be searched, and what ``search.run.search_prepared`` does.
    """
    from lcmmerge.draw import quiet_libraries

    quiet_libraries()
    from lcmmerge.search.order import Cell
    from lcmmerge.search.request import prepare
    from lcmmerge.search.run import search_prepared

    prepared = prepare(_request(build, section, work), output.warn)
    _begin(prepared, before)
    result = search_prepared(prepared, output)
    record_all(work)
    names = prepared.names
    chosen = Cell(tuple(term.strength for term in build.plan.terms), (1.0,) * len(prepared.blocks))
    rows = [row for row in result.scored.rows if row.kind == "cell" and row.score]
    scores = {row.cell: row.score.value for row in rows if row.score}
    least = min(scores[row.cell] for row in rows if not row.stopped)
    return {
        "best": dict(zip(names, result.scored.best.cell.numbers, strict=True)),
        "ties": [dict(zip(names, row.cell.numbers, strict=True)) for row in result.scored.ties],
        "verdict": list(result.scored.verdict),
        "search_regret": scores[chosen] - least if chosen in scores else None,
    }


def shown(work: Path) -> list[str]:
    """The names of the files that a search leaves for people and programs."""
    from lcmmerge.search.results import files_of

    return [path.name for path in files_of(work)]


def _begin(prepared: PreparedSearch, before: Path) -> None:
    """In the folder of work a study of the same inputs is there already, or comes from ``before``, or is begun."""
    inputs = json.dumps(dict(prepared.inputs), indent=2, sort_keys=True)
    work = prepared.request.work
    if _is_of(work, inputs):
        return
    shutil.rmtree(work, ignore_errors=True)
    if _is_of(before, inputs):
        shutil.copytree(before, work, symlinks=True)
    else:
        work.mkdir()
        write_text(work / INPUTS, inputs)


def _is_of(study: Path, inputs: str) -> bool:
    with suppress(OSError, ValueError):
        return read_text(study / INPUTS) == inputs
    return False


def _request(build: Build, section: Search, work: Path) -> SearchRequest:
    """Raises RecipeError where the grid or the blocks speak of no term, or the size makes no sense."""
    from lcmmerge.draw.jobs import parse_size
    from lcmmerge.search.blocks import Factors
    from lcmmerge.search.objectives import is_program
    from lcmmerge.search.request import SearchRequest

    terms = build.cell.fuse.terms
    asked = {**dict.fromkeys(section.grid, "grid"), **dict.fromkeys(section.blocks, "blocks")}
    if strange := [name for name in asked if name not in terms]:
        where = f"search.{asked[strange[0]]}.{strange[0]}"
        raise RecipeError(f"{where}: no such term", f"the terms are {', '.join(terms)}")
    if is_program(section.objective):
        cause = f"search.objective: {section.objective} is a TorchScript, a program, which no recipe may have run"
        raise RecipeError(cause, "name a folder of weights, or search with it by `lcmmerge search`")
    try:
        size = parse_size(section.size) if section.size else None
    except ValueError as error:
        raise RecipeError(f"search.size: {error}", "such as 512x512") from None
    check_accelerated(build)
    configs = build.inputs.get("config_from")
    fused = build.plan.merge
    merge = Merge(
        fused.base,
        fused.terms,
        fused.method,
        config_from=configs.found.reference if configs else None,
        parameters=fused.parameters,
    )
    # The λs of `fuse`, and factors of 1, are on every axis, so that their own cell is scored too.
    blocks = {
        name: {
            span: Factors(min(values), max(values), tuple(sorted({*values, 1.0}))) for span, values in spans.items()
        }
        for name, spans in section.blocks.items()
    }
    axes = {name: tuple(sorted({*section.grid.get(name, ()), term.strength})) for name, term in terms.items()}
    device = None if build.settings.device == "cpu" else build.settings.device
    fields = section.model_dump(include=FIELDS) | {"blocks": blocks, "size": size, "device": device}
    return SearchRequest(merge, work, tuple(section.prompts), axes, count=section.count, **fields)


def check_linear(build: Build) -> None:
    """Raises RecipeError where cells cannot be drawn from one sum, before anything is made."""
    merge = build.plan.merge
    if not merge.linear:
        cause = f"search: cells are drawn from one sum, and fuse.method is {merge.method_text}"
        raise RecipeError(cause, "search with the method add, or leave search away")


def check_accelerated(build: Build) -> None:
    """Raises RecipeError where none of the terms is an acceleration LoRA."""
    if build.plan.merge.accelerated is None:
        raise RecipeError("search: none of the terms is an accelerator", "say `accelerator:` of the source that is one")

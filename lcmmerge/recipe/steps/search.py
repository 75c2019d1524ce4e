"""How good the λs of ``fuse`` are, among those around them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from lcmmerge.draw.jobs import MOST_CELLS
from lcmmerge.errors import RecipeError
from lcmmerge.merge.spec import Merge
from lcmmerge.recipe.steps.base import Build, DrawingStep, StepWork
from lcmmerge.recipe.values import Factor, Word, pixels
from lcmmerge.refs.files import read_text
from lcmmerge.tensors.made import record_all
from lcmmerge.tensors.staging import write_text

if TYPE_CHECKING:
    from lcmmerge.search.request import PreparedSearch, SearchRequest

INPUTS = "inputs.json"
FIELDS = {"steps", "guidance", "seed", "batch", "objective", "optimize", "front", "halving"}  # as the search has them
Values = Annotated[list[Factor], Field(min_length=1)]


class Search(DrawingStep):
    """The λs around those of `fuse`, measured against the style model's many-step images."""

    target: ClassVar = "search/{}"
    order: ClassVar = 2
    resumes: ClassVar = "a study"

    grid: dict[Word, Values] = Field(min_length=1, description="Term → the λs to try; the one of `fuse` is tried too.")
    guidance: float | None = Field(None, ge=0, description="Of the teacher and of the baseline. Default: the model's.")
    blocks: dict[Word, dict[str, Values]] = Field(
        {}, description="Term → U-Net blocks → factors on its λ there to try, 1 among them: {style: {IN: [0.5, 1]}}."
    )
    optimize: int = Field(0, ge=0, le=MOST_CELLS, description="How many cells Optuna chooses, within the grid.")
    front: bool = Field(False, description="Let it seek cells that are good in the objective or in style.")
    halving: int = Field(
        0, ge=0, le=MOST_CELLS, description="Draw only the best 1/N cells further than a few prompts; 3 is usual."
    )
    objective: str = Field("teacher", description="What is measured; with `=` the weights of a network to look with.")

    def extras(self) -> list[str]:
        from lcmmerge.search.objectives import objective

        return ["search", *filter(None, [objective(self.objective).extra])]

    def doubts(self, build: Build) -> Iterable[str]:
        """Raises RecipeError where cells cannot be drawn from one sum."""
        merge = build.plan.merge
        if not merge.linear:
            cause = f"search: cells are drawn from one sum, and fuse.method is {merge.method_text}"
            raise RecipeError(cause, "search with the method add, or omit search")
        return ()

    def make(self, work: StepWork) -> dict[str, Any]:
        """The best λs, and how much worse those of ``fuse`` are.

        A study that was cut goes on, and the one that this is to replace lends its images where they depend on the
        same. Raises RecipeError for terms that cannot be searched, and what ``search.run.search_prepared`` does.
        """
        from lcmmerge.draw import quiet_libraries

        quiet_libraries()
        from lcmmerge.search.order import Cell
        from lcmmerge.search.request import prepare
        from lcmmerge.search.run import search_prepared

        prepared = prepare(self._request(work.build, work.content), work.output.warn)
        _begin(prepared, work.out / self.target.format(work.build.name))
        result = search_prepared(prepared, work.output)
        record_all(work.content)
        names = prepared.names
        chosen = Cell(tuple(term.strength for term in work.build.plan.terms), (1.0,) * len(prepared.blocks))
        rows = [row for row in result.scored.rows if row.kind == "cell" and row.score]
        scores = {row.cell: row.score.value for row in rows if row.score}
        least = min(scores[row.cell] for row in rows if not row.stopped)
        return {
            "best": dict(zip(names, result.scored.best.cell.numbers, strict=True)),
            "ties": [dict(zip(names, row.cell.numbers, strict=True)) for row in result.scored.ties],
            "verdict": list(result.scored.verdict),
            "search_regret": scores[chosen] - least if chosen in scores else None,
        }

    def recorded(self, content: Path) -> Iterable[Path]:
        """Those that a search leaves for people and programs."""
        from lcmmerge.search.results import files_of

        return files_of(content)

    def _request(self, build: Build, folder: Path) -> SearchRequest:
        """Raises RecipeError where the grid or the blocks speak of no term, or the size makes no sense."""
        from lcmmerge.search.blocks import Factors
        from lcmmerge.search.objectives import is_program
        from lcmmerge.search.request import SearchRequest

        merge = build.plan.merge
        terms = {term.name: term.strength for term in merge.terms}
        asked = {**dict.fromkeys(self.grid, "grid"), **dict.fromkeys(self.blocks, "blocks")}
        if strange := [name for name in asked if name not in terms]:
            where = f"search.{asked[strange[0]]}.{strange[0]}"
            raise RecipeError(f"{where}: no such term", f"the terms are {', '.join(terms)}")
        if is_program(self.objective):
            cause = f"search.objective: {self.objective} is a TorchScript, a program, which no recipe may have run"
            raise RecipeError(cause, "name a folder of weights, or search with it by `lcmmerge search`")
        size = pixels(self.size, "search.size") if self.size else None
        if merge.accelerated is None:
            cause = "search: none of the terms is an accelerator"
            raise RecipeError(cause, "say `accelerator:` of the source that is one")
        configs = build.inputs.get("config_from")
        merge = Merge(
            merge.base,
            merge.terms,
            merge.method,
            config_from=configs.found.reference if configs else None,
            parameters=merge.parameters,
            prediction=merge.prediction,
        )
        # The λs of `fuse`, and factors of 1, are on every axis, so that their own cell is scored too.
        blocks = {
            name: {
                span: Factors(min(values), max(values), tuple(sorted({*values, 1.0}))) for span, values in spans.items()
            }
            for name, spans in self.blocks.items()
        }
        axes = {name: tuple(sorted({*self.grid.get(name, ()), strength})) for name, strength in terms.items()}
        fields = self.model_dump(include=FIELDS) | {"blocks": blocks, "size": size, "device": build.device}
        return SearchRequest(merge, folder, tuple(self.prompts), axes, count=self.count, **fields)


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


STEP = Search

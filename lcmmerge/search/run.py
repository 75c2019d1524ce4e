"""A search from its request to its results, in a work folder that can be gone on with at any time.

    study.db     the cells, as Optuna keeps them (or the database of ``storage``)
    latents/     every drawing's samples, by what they depend on
    study.json, trials.csv, report.html, sheet.png, sheet-2.png, …
    files.json   which of these are a search's own
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass, field
from functools import cache, partial

import torch
from torch import Tensor

from lcmmerge.draw.load import load_pipeline
from lcmmerge.draw.presets import evaluations_of
from lcmmerge.extras import check_installed
from lcmmerge.output import Output
from lcmmerge.search.database import Database
from lcmmerge.search.diagnostics import overlaps
from lcmmerge.search.drawing import Drawer, FieldDrawer, Gallery, Sampled, tensor_of
from lcmmerge.search.field import Field, reached
from lcmmerge.search.objectives import Objective, Samples, objectives
from lcmmerge.search.order import Cell, label, ordered
from lcmmerge.search.pictures import decode
from lcmmerge.search.request import LATENTS, PreparedSearch, SearchRequest, prepare
from lcmmerge.search.result import Result
from lcmmerge.search.results import check_folder, write, write_pictures
from lcmmerge.search.score import score
from lcmmerge.search.store import Store, make_folder
from lcmmerge.search.study import CELL, FLOOR, TEACHER, Ask, Study, compared, figures
from lcmmerge.search.trials import Trials


def search(request: SearchRequest, output: Output = Output(quiet=True)) -> Result:  # noqa: B008 - frozen
    """Draw what the work folder does not hold yet, score everything, and write the results.

    Raises as ``prepare`` does, OutputError, and LcmMergeError: a study that was begun with other inputs, a database
    that cannot be used, a grid of which nothing could be drawn.
    """
    with _connected(request.ray):
        return search_prepared(prepare(request, output.warn), output)


def search_prepared(prepared: PreparedSearch, output: Output) -> Result:
    """``search`` of what was prepared; a Ray cluster is connected before. Raises OutputError, LcmMergeError."""
    request = prepared.request
    make_folder(request.work)
    check_folder(request.work, force=request.force)
    with closing(Database(prepared.url, request.work, shared=request.storage is not None)) as database:
        store = Store(request.work / LATENTS, prepared.inputs, database)
        maximise = [objective.maximise for objective in prepared.objectives]
        factors = len(prepared.blocks)
        with closing(Trials(database, prepared.inputs, prepared.bounds, maximise, factors, output.note)) as trials:
            return _run(prepared, store, trials, output)


def _run(prepared: PreparedSearch, store: Store, trials: Trials, output: Output) -> Result:
    request, plan = prepared.request, prepared.plan
    home = torch.device("cpu") if request.ray else prepared.device
    pipeline = load_pipeline(plan.base, prepared.configs, prepared.dtype, home)
    ask = prepared.ask(evaluations_of(prepared.preset, pipeline))

    @cache
    def drawer() -> Drawer:
        live = Field(plan, pipeline, prepared.blocks)
        if request.ray is None:
            return FieldDrawer(live, request.batch)
        from lcmmerge.search.cluster import Cluster

        return Cluster(live, request.batch, prepared.device)

    def set_vae(cell: Cell) -> None:
        if any(row.component == "vae" for row in plan.coverage):
            drawer().set(cell)

    def decoded(cell: Cell, latents: Tensor) -> Tensor:
        set_vae(cell)
        return torch.stack([tensor_of(image) for image in decode(pipeline, latents)]).to(pipeline.unet.device)

    gallery = Gallery(decoded)
    nothing = Cell((0.0,) * len(plan.terms), (0.0,) * len(prepared.blocks))
    cells = ordered(ask.with_controls(prepared.cells), reached(plan, prepared.blocks), nothing)
    controls = sum(map(ask.is_control, cells))
    images = ask.images(len(cells) - controls + request.optimize, controls)
    steps = sum(one.preset.steps * len(one.jobs) for one in compared(ask)) + ask.preset.steps * images
    watch = StudyWatch(prepared.names, ask, prepared.objective, gallery)
    with output.live("search", steps, "steps") as progress:

        def done(drawn: Sampled) -> None:
            progress(drawn.drawing.preset.steps * ask.added(drawn.drawing), partial(watch, drawn))

        study = Study(ask, store, trials, drawer, prepared.objectives, done, gallery)
        drawn = study.run(cells, request.optimize)
    evaluations = [evaluations_of(one.drawing.preset, pipeline) for one in drawn]
    scored = score(drawn, evaluations, prepared.objective, objectives()["style"], ask, prepared.published, gallery)
    result = Result(prepared, scored, tuple(overlaps(plan)))
    write(result)
    write_pictures(result, drawn, ask, pipeline, set_vae)
    return result


def _connected(address: str | None) -> AbstractContextManager[None]:
    """To a Ray cluster, where one is asked for. Raises LcmMergeError."""
    if address is None:
        return nullcontext()
    check_installed("cluster")
    from lcmmerge.search.cluster import connected

    return connected(address)


@dataclass(frozen=True, slots=True)
class StudyWatch:
    """What a person sees of a study while it runs: each drawing with its figures, as soon as it is there.

    They are not z-scored: that takes all the cells. ``names``: of a cell's numbers.
    """

    names: Sequence[str]
    ask: Ask
    objective: Objective
    samples: Callable[[Sampled], Samples | None]
    _teacher: list[Samples] = field(default_factory=list)

    def __call__(self, drawn: Sampled) -> Mapping[str, str]:
        """Column → what stands there. The teacher comes first."""
        drawing, ours = drawn.drawing, self.samples(drawn)
        name = label(self.names, drawing.cell.numbers) if drawing.kind == CELL else f"{drawing.kind}, {drawing.manner}"
        row = {"drawing": name}
        if ours is None:
            return {**row, "fault": drawn.fault}
        if drawing.kind == TEACHER:
            self._teacher.append(ours)
        if drawing.kind in (TEACHER, FLOOR):
            return row
        found = figures(self.objective, ours, self._teacher[0].of(self.ask.numbers(drawing)))
        return {**row, **{figure: f"{value:.3g}" for figure, value in found.items()}}

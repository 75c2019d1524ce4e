"""A search from its request to its results, in a work folder that can be gone on with at any time.

    study.db     the cells, as Optuna keeps them (or the database of ``storage``)
    latents/     every drawing's samples, by what they depend on
    study.json, trials.csv, report.html, sheet.png, sheet-2.png, …
"""

from __future__ import annotations

from contextlib import AbstractContextManager, closing, nullcontext
from functools import cache, partial
from importlib.util import find_spec

import torch
from torch import Tensor

from lcmmerge.errors import LcmMergeError
from lcmmerge.output import Output
from lcmmerge.sample.load import load_pipeline
from lcmmerge.sample.presets import evaluations_of
from lcmmerge.studies import cost
from lcmmerge.studies.database import Database
from lcmmerge.studies.diagnostics import overlaps
from lcmmerge.studies.drawing import Drawn, Way
from lcmmerge.studies.field import Field, reached
from lcmmerge.studies.gallery import Gallery, tensor_of
from lcmmerge.studies.objectives import objectives
from lcmmerge.studies.order import Strengths, ordered
from lcmmerge.studies.pictures import decode
from lcmmerge.studies.request import Prepared, SearchRequest, prepare
from lcmmerge.studies.result import Result
from lcmmerge.studies.results import write, write_pictures
from lcmmerge.studies.score import score
from lcmmerge.studies.store import Store, make_folder
from lcmmerge.studies.study import Ask, Study, compared
from lcmmerge.studies.trials import Trials
from lcmmerge.studies.watch import Watch


def search(request: SearchRequest, output: Output = Output(quiet=True)) -> Result:  # noqa: B008 - frozen
    """Draw what the work folder does not hold yet, score everything, and write the results.

    Raises as ``prepare`` does, OutputError, and LcmMergeError: a study that was begun with other inputs, a database
    that cannot be used, a grid of which nothing could be drawn.
    """
    with _connected(request.ray):
        return search_prepared(prepare(request, output.warn), output)


def search_prepared(prepared: Prepared, output: Output) -> Result:
    """``search`` of what was prepared; a Ray cluster is connected before. Raises OutputError, LcmMergeError."""
    request = prepared.request
    make_folder(request.work)
    with closing(Database(prepared.url, request.work, shared=request.storage is not None)) as database:
        store = Store(request.work / "latents", prepared.inputs, database)
        maximise = [objective.maximise for objective in prepared.objectives]
        with closing(Trials(database, prepared.inputs, prepared.bounds, maximise)) as trials:
            return _run(prepared, store, trials, output)


def _run(prepared: Prepared, store: Store, trials: Trials, output: Output) -> Result:
    request, plan = prepared.request, prepared.plan
    home = torch.device("cpu") if request.ray else prepared.device
    pipeline = load_pipeline(plan.base, prepared.configs, prepared.dtype, home)
    ask = prepared.ask(evaluations_of(prepared.preset, pipeline))
    choices: list[cost.Choice] = []

    @cache
    def way() -> Way:
        found, choice = _way(prepared, Field(plan, pipeline, prepared.blocks), ask, len(cells) + request.optimize)
        choices.append(choice)
        output.note(f"Drawn from {choice}.")
        return found

    def set_vae(strengths: Strengths) -> None:
        if any(row.component == "vae" for row in plan.coverage):
            way().set(strengths)

    def decoded(strengths: Strengths, latents: Tensor) -> Tensor:
        set_vae(strengths)
        return torch.stack([tensor_of(image) for image in decode(pipeline, latents)]).to(pipeline.unet.device)

    gallery = Gallery(decoded)
    nothing = (0.0,) * len(prepared.names)
    cells = ordered(ask.with_controls(prepared.cells), reached(plan, prepared.blocks), nothing)
    controls = sum(map(ask.is_control, cells))
    images = ask.images(len(cells) - controls + request.optimize, controls)
    steps = sum(one.preset.steps * len(one.jobs) for one in compared(ask)) + ask.preset.steps * images
    watch = Watch(prepared.names, ask, prepared.objective, gallery)
    with output.live("search", steps, "steps") as progress:

        def done(drawn: Drawn) -> None:
            progress(drawn.drawing.preset.steps * ask.added(drawn.drawing), partial(watch, drawn))

        study = Study(ask, store, trials, way, prepared.objectives, done, gallery)
        drawn = study.run(cells, request.optimize)
    evaluations = [evaluations_of(one.drawing.preset, pipeline) for one in drawn]
    scored = score(drawn, evaluations, prepared.objective, objectives()["style"], ask, prepared.published, gallery)
    result = Result(prepared, scored, choices[0] if choices else None, tuple(overlaps(plan)))
    write(result)
    write_pictures(result, drawn, ask, pipeline, set_vae)
    return result


def _way(prepared: Prepared, field: Field, ask: Ask, cells: int) -> tuple[Way, cost.Choice]:
    batch = prepared.request.batch
    if prepared.request.ray is None:
        return cost.choose(field, ask.jobs, ask.preset, batch, cells)
    from lcmmerge.studies.cluster import Cluster

    cluster = Cluster(field, ask.jobs, ask.preset, batch, cells, prepared.device)
    return cluster, cluster.choice


def _connected(address: str | None) -> AbstractContextManager[None]:
    """To a Ray cluster, where one is asked for. Raises LcmMergeError."""
    if address is None:
        return nullcontext()
    if not find_spec("ray"):
        raise LcmMergeError("--ray: Ray is not installed here", "pip install 'lcmmerge[cluster]'")
    from lcmmerge.studies.cluster import connected

    return connected(address)

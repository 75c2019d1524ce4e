"""A search from its request to its results, in a work folder that can be gone on with at any time.

    study.db     the cells, as Optuna keeps them (or the database of ``storage``)
    latents/     every drawing's samples, by what they depend on
    study.json, trials.csv, sheet.png
"""

from __future__ import annotations

from functools import cache

from lcmmerge.output import Output
from lcmmerge.sample.load import load_pipeline
from lcmmerge.sample.presets import evaluations_of
from lcmmerge.search import cost
from lcmmerge.search.diagnostics import overlaps
from lcmmerge.search.drawing import Drawn, Way
from lcmmerge.search.field import Field, reached
from lcmmerge.search.objectives import objectives
from lcmmerge.search.order import Strengths, ordered
from lcmmerge.search.request import Prepared, SearchRequest, prepare
from lcmmerge.search.results import Result
from lcmmerge.search.score import score
from lcmmerge.search.store import Store
from lcmmerge.search.study import Study, compared
from lcmmerge.search.trials import Trials


def search(request: SearchRequest, output: Output = Output(quiet=True)) -> Result:  # noqa: B008 - frozen
    """Draw what the work folder does not hold yet, score everything, and write the results.

    Raises as ``prepare`` does, OutputError, and LcmMergeError: a study that was begun with other inputs, a database
    that cannot be used, a grid of which nothing could be drawn.
    """
    prepared = prepare(request, output.warn)
    store = Store(request.work / "latents", prepared.inputs)
    maximise = prepared.objective.maximise
    trials = Trials(request.work, prepared.url, prepared.inputs, prepared.bounds, maximise=maximise)
    try:
        return _run(prepared, store, trials, output)
    finally:
        trials.close()


def _run(prepared: Prepared, store: Store, trials: Trials, output: Output) -> Result:
    request, plan = prepared.request, prepared.plan
    pipeline = load_pipeline(plan.base, prepared.configs, prepared.dtype, prepared.device)
    ask = prepared.ask(evaluations_of(prepared.preset, pipeline))
    choices: list[cost.Choice] = []

    @cache
    def way() -> Way:
        found, choice = cost.choose(Field(plan, pipeline), ask.jobs, ask.preset, request.batch)
        choices.append(choice)
        output.note(f"Drawn from {choice}.")
        return found

    nothing = (0.0,) * len(plan.terms)
    cells = ordered(ask.with_controls(prepared.cells), reached(plan), nothing)
    images = sum(drawing.preset.steps for drawing in compared(ask)) + ask.preset.steps * (len(cells) + request.optimize)
    with output.progress("search", images * len(ask.jobs), "steps") as progress:

        def done(drawn: Drawn) -> None:
            progress(drawn.drawing.preset.steps * len(drawn.drawing.jobs))

        drawn = Study(ask, store, trials, way, prepared.objective, done).run(cells, request.optimize)
    evaluations = [evaluations_of(one.drawing.preset, pipeline) for one in drawn]
    scored = score(drawn, evaluations, prepared.objective, objectives()["style"], ask, prepared.published)
    result = Result(prepared, scored, choices[0] if choices else None, tuple(overlaps(plan)))
    result.write()

    def set_vae(strengths: Strengths) -> None:
        if any(row.component == "vae" for row in plan.coverage):
            way().set(strengths)

    result.write_sheet(drawn, ask, pipeline, set_vae)
    return result

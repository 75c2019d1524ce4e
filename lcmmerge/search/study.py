"""A study: a grid of λ, drawn cell by cell from a live field, scored against the style model's many-step samples.

Every study holds what the merge must beat: the control (λ = 0 for the accelerator, with the few-step scheduler), and
DPM-Solver++ on the style model at as many evaluations of the U-Net; and the distance between two draws of the teacher,
below which no difference means anything.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save

from lcmmerge.errors import NumericError
from lcmmerge.merge.provenance import canonical_json
from lcmmerge.sample.draw import Wanted, draw
from lcmmerge.sample.encode import Encoder
from lcmmerge.sample.jobs import Job
from lcmmerge.sample.presets import BASELINES, Preset, of_sampling
from lcmmerge.search.field import Field, Strengths
from lcmmerge.search.objectives import Samples
from lcmmerge.tensors.staging import Staging

TEACHER, FLOOR, BASELINE, CELL = "teacher", "floor", "DPM-Solver++", "cell"
VERSION = 1  # of what a cell's file holds
ANOTHER_SEED = 1 << 20  # the floor's seeds are the teacher's plus this
DPM = "dpm-solver++"
TEACHER_STEPS = 25


@dataclass(frozen=True, slots=True)
class Ask:
    """``jobs``: prompts × seeds. ``preset``: the few-step one. ``accelerator``: the number of its term.

    ``guidance``: of the teacher and of the baseline. ``inputs``: what the files are, JSON-ready, for the cells' keys.
    """

    jobs: tuple[Job, ...]
    preset: Preset
    cells: tuple[Strengths, ...]
    accelerator: int
    guidance: float
    inputs: Mapping[str, Any]
    batch: int = 8


@dataclass(frozen=True, slots=True)
class Drawing:
    """What is drawn once: θ(λ) by a preset. ``kind``: a cell, or one of those that cells are compared with."""

    kind: str
    strengths: Strengths
    preset: Preset
    jobs: tuple[Job, ...]


@dataclass(frozen=True, slots=True)
class Drawn:
    """``samples``: None where θ(λ) or an image is NaN, and ``fault`` says so."""

    drawing: Drawing
    samples: Samples | None
    fault: str = ""


def drawings(ask: Ask, field: Field) -> list[Drawing]:
    """The teacher first, then the floor, the baseline, and the cells in the order that rewrites the least."""
    styled = tuple(0.0 if term == ask.accelerator else 1.0 for term in range(len(field.plan.terms)))
    many = replace(of_sampling(DPM, BASELINES[DPM]), steps=TEACHER_STEPS, guidance=ask.guidance)
    others = tuple(replace(job, seed=job.seed + ANOTHER_SEED) for job in ask.jobs)
    equal = (
        replace(many, steps=max(1, ask.preset.steps // 2))
        if ask.guidance > 1
        else replace(many, steps=ask.preset.steps)
    )
    compared = [
        Drawing(TEACHER, styled, many, ask.jobs),
        Drawing(FLOOR, styled, many, others),
        Drawing(BASELINE, styled, equal, ask.jobs),
    ]
    control = {
        tuple(0.0 if term == ask.accelerator else value for term, value in enumerate(cell)) for cell in ask.cells
    }
    cells = field.ordered(sorted({*ask.cells, *control}))
    return [*compared, *(Drawing(CELL, cell, ask.preset, ask.jobs) for cell in cells)]


def run(ask: Ask, field: Field, work: Path, done: Callable[[Drawn], None] = lambda drawn: None) -> list[Drawn]:
    """Draw what the folder ``work`` does not hold yet; a finished cell is never drawn again.

    A cell whose weights or images are NaN fails, and the study goes on. Raises OutputError, LcmMergeError.
    """
    work.mkdir(parents=True, exist_ok=True)
    encoders: dict[Strengths, Encoder] = {}
    found = []
    for drawing in drawings(ask, field):
        path = work / f"{key(ask, drawing)}.safetensors"
        drawn = _stored(path, drawing) or _draw(ask, field, drawing, encoders)
        if drawn.samples and not path.exists():
            with Staging(path) as staging:
                (staging.folder / path.name).write_bytes(save({"latents": drawn.samples.latents}))
                staging.commit_files()
        found.append(drawn)
        done(drawn)
    return found


def key(ask: Ask, drawing: Drawing) -> str:
    """sha256 of everything that the samples depend on."""
    jobs = [[job.prompt, job.negative, job.seed, *job.size] for job in drawing.jobs]
    content = {"version": VERSION, "inputs": ask.inputs, "jobs": jobs, "preset": drawing.preset.as_dict()}
    text = canonical_json({**content, "strengths": list(drawing.strengths)})
    return hashlib.sha256(text.encode()).hexdigest()


def _stored(path: Path, drawing: Drawing) -> Drawn | None:
    if not path.exists():
        return None
    return Drawn(drawing, Samples(load_file(path)["latents"], _prompts(drawing.jobs)))


def _draw(ask: Ask, field: Field, drawing: Drawing, encoders: dict[Strengths, Encoder]) -> Drawn:
    try:
        field.set(drawing.strengths)
        text = field.text_key(drawing.strengths)
        encoder = encoders.setdefault(text, Encoder(field.pipeline))
        wanted = Wanted(images=False, latents=True)
        drawn = draw(field.pipeline, drawing.jobs, drawing.preset, ask.batch, wanted=wanted, encoder=encoder)
        latents = torch.stack([one.latents for one in drawn if one.latents is not None])
    except NumericError as error:
        return Drawn(drawing, None, error.message)
    return Drawn(drawing, Samples(latents, _prompts(drawing.jobs)))


def _prompts(jobs: Sequence[Job]) -> tuple[str, ...]:
    return tuple(job.prompt for job in jobs)

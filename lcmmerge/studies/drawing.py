"""What a study draws, and the two ways to draw it: weights rewritten cell by cell, or several cells at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from lcmmerge.errors import NumericError
from lcmmerge.sample.draw import Wanted, draw
from lcmmerge.sample.encode import Encoder
from lcmmerge.sample.jobs import Job
from lcmmerge.sample.presets import Preset
from lcmmerge.studies.batched import CellEncoder, CellJob, PerSample
from lcmmerge.studies.field import Field
from lcmmerge.studies.order import Strengths

LATENTS = Wanted(images=False, latents=True)


@dataclass(frozen=True, slots=True)
class Drawing:
    """θ(λ) by a preset. ``kind``: a cell, or one of those that cells are compared with."""

    kind: str
    strengths: Strengths
    preset: Preset
    jobs: tuple[Job, ...]

    @property
    def manner(self) -> str:
        """``25 steps, guidance 7.5``."""
        guidance = f", guidance {self.preset.guidance:g}" if self.preset.guidance > 1 else ""
        return f"{self.preset.steps} step{'s' if self.preset.steps > 1 else ''}{guidance}"

    def as_dict(self) -> dict[str, Any]:
        """What its samples depend on beside the models; JSON-ready."""
        jobs = [[job.prompt, job.negative, job.seed, *job.size] for job in self.jobs]
        return {"strengths": list(self.strengths), "preset": self.preset.as_dict(), "jobs": jobs}


@dataclass(frozen=True, slots=True)
class Drawn:
    """``latents``: [jobs, C, h, w] float32 on the CPU; None where θ(λ) or an image is NaN, and ``fault`` says so."""

    drawing: Drawing
    latents: Tensor | None
    fault: str = ""


class Way(Protocol):
    """Draws; ``at_once`` cells are best drawn together. ``set`` makes the pipeline θ(λ), until the next call."""

    at_once: int

    def __call__(self, drawings: Sequence[Drawing]) -> Iterator[Drawn]: ...

    def set(self, strengths: Strengths) -> None: ...


class OneByOne:
    """Each cell's weights are written; at most ``batch`` images are drawn at once."""

    at_once = 1

    def __init__(self, field: Field, batch: int) -> None:
        self._field, self._batch = field, batch
        self._encoders: dict[Strengths, Encoder] = {}

    def __call__(self, drawings: Sequence[Drawing]) -> Iterator[Drawn]:
        for drawing in drawings:
            try:
                yield Drawn(drawing, self._draw(drawing))
            except NumericError as error:
                yield Drawn(drawing, None, error.message)

    def set(self, strengths: Strengths) -> None:
        self._field.set(strengths)

    def _draw(self, drawing: Drawing) -> Tensor:
        self.set(drawing.strengths)
        pipeline, key = self._field.pipeline, self._field.text_key(drawing.strengths)
        encoder = self._encoders.setdefault(key, Encoder(pipeline))
        return _latents(self._field, drawing.jobs, drawing.preset, self._batch, encoder)


class Together:
    """The cells of one preset share forward passes of ``batch`` images. The field's weights stay W₀."""

    def __init__(self, field: Field, batch: int, jobs: int) -> None:
        self._field, self._batch = field, batch
        self.at_once = max(1, batch // jobs)
        self._hooks = PerSample(field)
        self._encoder = CellEncoder(field, self._hooks)

    def __call__(self, drawings: Sequence[Drawing]) -> Iterator[Drawn]:
        jobs = [
            CellJob(job.prompt, job.negative, job.seed, *job.size, drawing.strengths)
            for drawing in drawings
            for job in drawing.jobs
        ]
        try:
            found = _latents(self._field, jobs, drawings[0].preset, self._batch, self._encoder)
        except NumericError as error:
            if len(drawings) == 1:
                yield Drawn(drawings[0], None, error.message)
                return
            for drawing in drawings:  # which of them it was
                yield from self([drawing])
            return
        begin = 0
        for drawing in drawings:
            yield Drawn(drawing, found[begin : begin + len(drawing.jobs)].clone())
            begin += len(drawing.jobs)

    def set(self, strengths: Strengths) -> None:
        self._hooks.set([strengths])


def _latents(field: Field, jobs: Sequence[Job], preset: Preset, batch: int, encoder: Encoder) -> Tensor:
    drawing = draw(field.pipeline, jobs, preset, batch, wanted=LATENTS, encoder=encoder)
    return torch.stack([one.latents for one in drawing if one.latents is not None])

"""What a study draws, and what draws it: each cell's weights are written into a live pipeline."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor

from lcmmerge.draw.draw import DrawOutputs, draw
from lcmmerge.draw.encode import Encoder
from lcmmerge.draw.jobs import Job
from lcmmerge.draw.presets import Preset
from lcmmerge.errors import NumericError
from lcmmerge.history import canonical_json
from lcmmerge.search.field import Field
from lcmmerge.search.objectives import Samples
from lcmmerge.search.order import Cell

LATENTS = DrawOutputs(images=False, latents=True)


@dataclass(frozen=True, slots=True)
class Drawing:
    """θ(λ) by a preset. ``kind``: a cell, or one of those that cells are compared with."""

    kind: str
    cell: Cell
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
        return {"strengths": list(self.cell.numbers), "preset": self.preset.as_dict(), "jobs": jobs}


@dataclass(frozen=True, slots=True)
class Sampled:
    """What one drawing gave.

    ``latents``: [jobs, C, h, w] float32 on the CPU; None where θ(λ) or an image is NaN, and ``fault`` says so.
    """

    drawing: Drawing
    latents: Tensor | None
    fault: str = ""


class Drawer(Protocol):
    """Draws, here or on a cluster; ``at_once``: how many cells to give it. ``set`` makes the pipeline θ(λ)."""

    at_once: int

    def __call__(self, drawings: Sequence[Drawing]) -> Iterator[Sampled]: ...

    def set(self, cell: Cell) -> None: ...


class FieldDrawer:
    """Draws with a field, at most ``batch`` images at once. Cells that differ in no text encoder share embeddings."""

    at_once = 1

    def __init__(self, field: Field, batch: int) -> None:
        self._field, self._batch = field, batch
        self._encoders: dict[tuple[float, ...], Encoder] = {}

    def __call__(self, drawings: Sequence[Drawing]) -> Iterator[Sampled]:
        for drawing in drawings:
            try:
                yield Sampled(drawing, self._draw(drawing))
            except NumericError as error:
                yield Sampled(drawing, None, error.message)

    def set(self, cell: Cell) -> None:
        self._field.set(cell)

    def _draw(self, drawing: Drawing) -> Tensor:
        self.set(drawing.cell)
        pipeline, key = self._field.pipeline, self._field.text_key(drawing.cell)
        encoder = self._encoders.setdefault(key, Encoder(pipeline))
        drawn = draw(pipeline, drawing.jobs, drawing.preset, self._batch, wanted=LATENTS, encoder=encoder)
        return torch.stack([one.latents for one in drawn if one.latents is not None])


def tensor_of(image: Image) -> Tensor:
    """[3, H, W] uint8."""
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


class Gallery:
    """The images of a study, decoded when they are first asked for.

    ``decode``: a cell and latents → images, as ``Samples`` has them.
    """

    def __init__(self, decode: Callable[[Cell, Tensor], Tensor] | None = None) -> None:
        self._decode = decode
        self._known: dict[str, Samples] = {}

    def __call__(self, drawn: Sampled) -> Samples | None:
        """None where there are none."""
        if drawn.latents is None:
            return None
        key = f"{drawn.drawing.kind}: {canonical_json(drawn.drawing.as_dict())}"
        if key not in self._known:
            decode = partial(self._decode, drawn.drawing.cell) if self._decode else None
            prompts = tuple(job.prompt for job in drawn.drawing.jobs)
            self._known[key] = Samples(drawn.latents, prompts, decode)
        return self._known[key]

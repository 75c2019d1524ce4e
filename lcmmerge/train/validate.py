"""A score of the networks on held-out examples, lower is better, and sheets of what they draw."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from PIL import Image
from torch import Tensor

from lcmmerge.draw.sampling import decoded
from lcmmerge.tensors.staging import replace_with
from lcmmerge.train.batch import Batch
from lcmmerge.train.networks import Networks
from lcmmerge.train.objectives import TrainingObjective
from lcmmerge.train.sampling import Sampler

GAP = 8  # pixels between the halves of a sheet
Draw = Callable[[Networks, Batch], Tensor]


@dataclass(frozen=True, slots=True)
class Validation:
    """What is measured and drawn on examples that are not trained on.

    ``batches``: held out, on the networks' device. ``draw`` makes the student's samples, ``compare`` those beside
    them, once. ``paired``: the score is the mean squared error between the two; else it is ``objective``'s loss with
    fixed draws, which ``seed`` makes.
    """

    batches: Sequence[Batch]
    objective: TrainingObjective
    seed: int
    draw: Draw
    compare: Draw | None
    paired: bool
    drawn: list[Tensor] = field(default_factory=list)
    beside: list[Tensor] = field(default_factory=list)

    def __call__(self, networks: Networks) -> float:
        self.drawn[:] = [self.draw(networks, batch) for batch in self.batches]
        if self.compare and not self.beside:
            self.beside[:] = [self.compare(networks, batch) for batch in self.batches]
        if self.paired:
            pairs = zip(self.drawn, self.beside, strict=True)
            return _mean(float((student - teacher).square().mean()) for student, teacher in pairs)
        return _mean(self._loss(networks, number, batch) for number, batch in enumerate(self.batches))

    def _loss(self, networks: Networks, number: int, batch: Batch) -> float:
        draw = torch.Generator().manual_seed(self.seed + number)
        return float(self.objective.loss(networks, batch, draw))


def validation(objective: TrainingObjective, batches: Sequence[Batch], sampler: Sampler, *, full: bool) -> Validation:
    """The score that fits the objective.

    Distillation: few-step samples against the teacher's many-step ones from the same start noise. Others: the loss.
    """
    seed = sampler.seed
    if objective.teaches:
        return Validation(batches, objective, seed, sampler.few, sampler.many, True)
    if objective.trails:  # a fine-tuned whole model has no teacher beside it
        return Validation(batches, objective, seed, sampler.few, None if full else sampler.few_before, False)
    return Validation(batches, objective, seed, sampler.many_after, sampler.many, False)


def _mean(scores: Iterable[float]) -> float:
    found = list(scores)
    return sum(found) / len(found)


def write_sheet(path: Path, vae: AutoencoderKL, validation: Validation) -> None:
    """The student's last samples as one PNG, and to the right of them those beside which it is judged.

    Raises OutputError, OSError.
    """
    halves = [_grid(_decode(vae, part)) for part in (validation.drawn, validation.beside) if part]
    width = sum(half.width for half in halves) + GAP * (len(halves) - 1)
    sheet = Image.new("RGB", (width, halves[0].height), "white")
    left = 0
    for half in halves:
        sheet.paste(half, (left, 0))
        left += half.width + GAP
    content = io.BytesIO()
    sheet.save(content, "png")
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_with(path, content.getvalue())


def _decode(vae: AutoencoderKL, latents: Sequence[Tensor]) -> list[Image.Image]:
    images = []
    for pixels in decoded(vae, torch.cat(list(latents))):
        eight_bit = ((pixels.float() / 2 + 0.5).clamp(0, 1) * 255).round().byte().permute(1, 2, 0)
        images.append(Image.fromarray(eight_bit.cpu().numpy()))
    return images


def _grid(images: Sequence[Image.Image]) -> Image.Image:
    """As square as can be, row by row."""
    columns = math.ceil(math.sqrt(len(images)))
    rows = math.ceil(len(images) / columns)
    width, height = images[0].size
    grid = Image.new("RGB", (columns * width, rows * height), "white")
    for number, image in enumerate(images):
        row, column = divmod(number, columns)
        grid.paste(image, (column * width, row * height))
    return grid

"""Which way to draw is the cheapest here: measured on this model, this machine and this batch, and said.

    deltas       θ(λ) written from D in float32: the least arithmetic, four bytes for each parameter and term
    factors      θ(λ) written from BA, formed anew for each cell
    per sample   several cells in a forward pass, with LoRAs beside the layers: no weights are written
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from lcmmerge.sample.draw import draw
from lcmmerge.sample.encode import Encoder
from lcmmerge.sample.jobs import Job
from lcmmerge.sample.presets import Preset
from lcmmerge.studies.batched import CellEncoder, CellJob, PerSample, obstacle
from lcmmerge.studies.drawing import LATENTS, OneByOne, Together, Way
from lcmmerge.studies.field import Field

DELTAS, FACTORS, PER_SAMPLE = "deltas", "factors", "per sample"
SAMPLE = 8  # one in so many parameters is written to tell what writing all of them takes
SHARE = 0.5  # of the free memory that deltas may take
NEGLIGIBLE = 0.02  # a rewrite that takes less of a cell's time leaves nothing to gain


@dataclass(frozen=True, slots=True)
class Choice:
    """``seconds``: way → what a cell takes, and ``ruled_out``: way → why it was not measured."""

    way: str
    seconds: dict[str, float]
    ruled_out: dict[str, str]

    def as_dict(self) -> dict[str, Any]:
        return {"way": self.way, "seconds_per_cell": self.seconds, "ruled_out": self.ruled_out}

    def __str__(self) -> str:
        measured = ", ".join(f"{way} {seconds:.3g} s" for way, seconds in self.seconds.items())
        others = "".join(f"; not {way}: {why}" for way, why in self.ruled_out.items())
        return f"{self.way}: a cell takes, as measured, {measured}{others}"


def choose(field: Field, jobs: tuple[Job, ...], preset: Preset, batch: int) -> tuple[Way, Choice]:
    """The way to draw cells of these jobs, ready; the field's λs are 0, before and after."""
    ruled_out = {}
    forward = _forward(field, jobs[:batch], preset, Encoder(field.pipeline))
    drawing = forward * -(-len(jobs) // batch)
    seconds = {FACTORS: drawing + _timed(lambda: field.set(field.ones), field)}
    needed, free = 4 * sum(part.factored for part in field.parts), free_memory(field)
    if needed <= SHARE * free:
        seconds[DELTAS] = drawing + _writing_deltas(field)
    else:
        ruled_out[DELTAS] = f"they need {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free"
    field.set(field.zeros)
    if why := obstacle(field):
        ruled_out[PER_SAMPLE] = why
    elif len(jobs) >= batch and min(seconds.values()) < (1 + NEGLIGIBLE) * drawing:
        ruled_out[PER_SAMPLE] = "a cell fills the batch, and writing its weights takes next to nothing"
    else:
        seconds[PER_SAMPLE] = _per_sample(field, jobs, preset, batch)
    choice = Choice(min(seconds, key=seconds.__getitem__), seconds, ruled_out)
    if choice.way == PER_SAMPLE:
        return Together(field, batch, len(jobs)), choice
    if choice.way == DELTAS:
        field.form()
    return OneByOne(field, batch), choice


def free_memory(field: Field) -> int:
    """Bytes, where the weights are."""
    device = field.pipeline.unet.device
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _forward(field: Field, jobs: tuple[Job, ...], preset: Preset, encoder: Encoder) -> float:
    """Seconds of all the steps, from those of one."""
    one = replace(preset, steps=1)

    def once() -> None:
        list(draw(field.pipeline, jobs, one, len(jobs), wanted=LATENTS, encoder=encoder))

    once()  # texts are encoded, and libraries load what they load
    return preset.steps * _timed(once, field)


def _per_sample(field: Field, jobs: tuple[Job, ...], preset: Preset, batch: int) -> float:
    """Seconds of a cell, where the batch is full of several cells' jobs."""
    cells = max(1, batch // len(jobs))
    asked = [
        CellJob(job.prompt, job.negative, job.seed, *job.size, field.ones)
        for _ in range(cells)
        for job in jobs
    ][:batch]
    hooks = PerSample(field)
    seconds = _forward(field, tuple(asked), preset, CellEncoder(field, hooks))
    hooks.close()
    return seconds * len(jobs) / len(asked)


@torch.no_grad()
def _writing_deltas(field: Field) -> float:
    """Seconds to write all weights from deltas, from those of a sample; the field's λs are 1."""
    chosen = [part.formed() for part in field.parts[::SAMPLE]]
    def write() -> None:
        for part in chosen:
            part.write(field.ones)

    seconds = _timed(write, field)
    whole, sample = (sum(part.pristine.numel() for part in parts) for parts in (field.parts, chosen))
    return seconds * whole / sample


def _timed(work: Callable[[], object], field: Field) -> float:
    cuda = field.pipeline.unet.device.type == "cuda"
    if cuda:
        torch.cuda.synchronize()
    begin = time.perf_counter()
    work()
    if cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - begin

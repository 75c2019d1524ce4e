"""Which way to draw is the cheapest here: measured on this model, this machine and this batch, and said.

    factors      θ(λ) written from BA, formed anew for each cell: needs nothing beside the model
    deltas       θ(λ) written from D in float32: the least arithmetic, four bytes for each parameter and term
    per sample   several cells in a forward pass, with LoRAs beside the layers: no weights are written

What disturbs a trial makes it slower, so the fastest of a few counts. A way is tried only where that can pay.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import cycle
from typing import Any

import torch

from lcmmerge.sample.draw import draw
from lcmmerge.sample.encode import Encoder
from lcmmerge.sample.jobs import Job
from lcmmerge.sample.presets import Preset
from lcmmerge.studies.batched import CellEncoder, CellJob, PerSample, obstacle
from lcmmerge.studies.drawing import LATENTS, OneByOne, Together, Way
from lcmmerge.studies.field import Field

FACTORS, DELTAS, PER_SAMPLE = "factors", "deltas", "per sample"
ROUNDS = 3  # of a trial
SHARE = 0.2  # of the cells' time that a trial may take
MARGIN = 0.1  # of a cell's time: a way that saves less is not taken
SAMPLE = 8  # one in so many parameters is written from deltas to tell what writing all of them takes
MEMORY = 0.5  # of what is free that deltas may take
FAINT = (1e-3, 2e-3)  # λs of trials: no term, however strong, makes an image NaN with them


@dataclass(frozen=True, slots=True)
class Choice:
    """``seconds``: way → what a cell takes, and ``ruled_out``: way → why it was not tried."""

    way: str
    seconds: Mapping[str, float]
    ruled_out: Mapping[str, str]

    def as_dict(self) -> dict[str, Any]:
        return {"way": self.way, "seconds_per_cell": dict(self.seconds), "ruled_out": dict(self.ruled_out)}

    def __str__(self) -> str:
        measured = ", ".join(f"{way} {seconds:.3g} s" for way, seconds in self.seconds.items())
        others = "".join(f"; not {way}: {why}" for way, why in self.ruled_out.items())
        return f"{self.way}{': a cell takes, as measured, ' if measured else ''}{measured}{others}"


def choose(field: Field, jobs: tuple[Job, ...], preset: Preset, batch: int, cells: int) -> tuple[Way, Choice]:
    """The way to draw so many ``cells`` of these jobs, ready; the field's λs are 0, before and after."""
    if SHARE * cells < ROUNDS:
        choice = Choice(FACTORS, {}, dict.fromkeys((DELTAS, PER_SAMPLE), _too_few(cells)))
    else:
        seconds, ruled_out = _tried(field, jobs, preset, batch, cells)
        choice = Choice(clearly_fastest(seconds), seconds, ruled_out)
    if choice.way == PER_SAMPLE:
        return Together(field, batch, len(jobs)), choice
    if choice.way == DELTAS:
        field.form()
    return OneByOne(field, batch), choice


def clearly_fastest(seconds: Mapping[str, float]) -> str:
    """By factors, unless another way takes less by more than the margin."""
    chosen = FACTORS
    for way in (DELTAS, PER_SAMPLE):
        if seconds.get(way, float("inf")) < (1 - MARGIN) * seconds[chosen]:
            chosen = way
    return chosen


def free_memory(field: Field) -> int:
    """Bytes, where the weights are."""
    device = field.pipeline.unet.device
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _tried(
    field: Field, jobs: tuple[Job, ...], preset: Preset, batch: int, cells: int
) -> tuple[dict[str, float], dict[str, str]]:
    """Way → seconds of a cell, and way → why it was not tried."""
    ruled_out: dict[str, str] = {}
    step = _step(field, jobs[:batch], preset, Encoder(field.pipeline))
    forward, writing = _fastest(field, step, _rewrite(field))
    forwards, together = preset.steps * -(-len(jobs) // batch), max(1, batch // len(jobs))
    seconds = {FACTORS: forwards * forward + writing}
    is_cheap = writing < MARGIN * seconds[FACTORS]
    needed, free = 4 * sum(part.factored for part in field.parts), free_memory(field)
    if is_cheap:
        ruled_out[DELTAS] = "writing the weights takes next to nothing"
    elif needed > MEMORY * free:
        ruled_out[DELTAS] = f"they need {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free"
    else:
        seconds[DELTAS] = forwards * forward + _writing_deltas(field)
    field.set(field.zeros)
    if why := obstacle(field):
        ruled_out[PER_SAMPLE] = why
    elif is_cheap and together == 1:
        ruled_out[PER_SAMPLE] = "a cell fills the batch, and writing its weights takes next to nothing"
    elif ROUNDS * together * forward > SHARE * cells * seconds[FACTORS]:  # as long as where sharing saves nothing
        ruled_out[PER_SAMPLE] = _too_few(cells)
    else:
        shared = _per_sample(field, jobs, preset, batch)
        (again,) = _fastest(field, step)  # what disturbed the others may have ended by now
        seconds = {way: taken - forwards * max(0.0, forward - again) for way, taken in seconds.items()}
        seconds[PER_SAMPLE] = shared
    return seconds, ruled_out


def _too_few(cells: int) -> str:
    return f"for {cells} cells a trial would take more than it could save"


def _step(field: Field, jobs: tuple[Job, ...], preset: Preset, encoder: Encoder) -> Callable[[], object]:
    """One of the preset's steps."""
    one = replace(preset, steps=1)
    return lambda: list(draw(field.pipeline, jobs, one, len(jobs), wanted=LATENTS, encoder=encoder))


def _rewrite(field: Field) -> Callable[[], None]:
    """Other λs each time, so that all weights are written."""
    cells = cycle([(strength,) * len(field.zeros) for strength in FAINT])
    return lambda: field.set(next(cells))


@torch.no_grad()
def _writing_deltas(field: Field) -> float:
    """Seconds to write all weights from deltas, from those of a sample, which is left written."""
    chosen = [part.formed() for part in field.parts[::SAMPLE]]
    strengths = (FAINT[0],) * len(field.zeros)

    def write() -> None:
        for part in chosen:
            part.write(strengths)

    (seconds,) = _fastest(field, write)
    whole, sample = (sum(part.pristine.numel() for part in parts) for parts in (field.parts, chosen))
    return seconds * whole / sample


def _per_sample(field: Field, jobs: tuple[Job, ...], preset: Preset, batch: int) -> float:
    """Seconds of a cell, where the batch is full of several cells' jobs."""
    strengths = (FAINT[0],) * len(field.zeros)
    cell = [CellJob(job.prompt, job.negative, job.seed, *job.size, strengths) for job in jobs]
    asked = tuple(cell * max(1, batch // len(jobs)))[:batch]
    hooks = PerSample(field)
    (seconds,) = _fastest(field, _step(field, asked, preset, CellEncoder(field, hooks)))
    hooks.close()
    return preset.steps * seconds * len(jobs) / len(asked)


def _fastest(field: Field, *works: Callable[[], object]) -> list[float]:
    """Seconds of each: the least of some rounds, in which they take turns. The first loads what is not loaded yet."""
    rounds = [[_timed(work, field) for work in works] for _ in range(ROUNDS)]
    return [min(taken) for taken in zip(*rounds, strict=True)]


def _timed(work: Callable[[], object], field: Field) -> float:
    cuda = field.pipeline.unet.device.type == "cuda"
    if cuda:
        torch.cuda.synchronize()
    begin = time.perf_counter()
    work()
    if cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - begin

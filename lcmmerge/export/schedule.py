"""A scheduler's steps as numbers: what it makes of the latents, the U-Net's prediction and fresh noise.

Few-step schedulers are linear: x′ = a·x + b·ε + c·z at each step (LCM: https://arxiv.org/abs/2310.04378, algorithm 3;
TCD, DDIM and Euler likewise). The numbers are found by asking diffusers' own scheduler, so they are its own, with its
config and its version; one that clips, or remembers earlier predictions, does not fit and is refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from diffusers import SchedulerMixin

from lcmmerge.errors import IncompatibleError
from lcmmerge.export.pipeline import accepted
from lcmmerge.sample.presets import Preset

PROBES = 32
EXACT = 1e-5  # Euler's scheduler computes in float32


@dataclass(frozen=True, slots=True)
class Step:
    """The U-Net is asked about ``scale`` · x at ``timestep``; then x′ = ``latents`` · x + ``prediction`` · ε + ``noise`` · z."""

    timestep: int
    scale: float
    latents: float
    prediction: float
    noise: float


def steps_of(scheduler: SchedulerMixin, preset: Preset) -> tuple[Step, ...]:
    """The first step's x is noise of variance 1. Raises IncompatibleError where a step is not linear."""
    scheduler.set_timesteps(preset.steps)
    steps = list(_steps(scheduler, preset))
    sigma = float(scheduler.init_noise_sigma)
    first = steps[0]
    steps[0] = Step(first.timestep, first.scale * sigma, first.latents * sigma, first.prediction, first.noise)
    return tuple(steps)


def _steps(scheduler: SchedulerMixin, preset: Preset) -> Iterator[Step]:
    for number, timestep in enumerate(scheduler.timesteps):
        probes = torch.randn(2, PROBES, generator=torch.Generator().manual_seed(number), dtype=torch.float64)
        sample, prediction = probes
        noise = torch.randn(PROBES, generator=_seeded(number), dtype=torch.float64)
        scaled = scheduler.scale_model_input(sample, timestep)
        given = accepted(scheduler.step, {**preset.arguments, "generator": _seeded(number)})
        result = scheduler.step(prediction, timestep, sample, **given, return_dict=False)[0].double()
        found = torch.linalg.lstsq(torch.stack([sample, prediction, noise], 1), result[:, None]).solution[:, 0]
        (scale,) = torch.linalg.lstsq(sample[:, None], scaled.double()[:, None]).solution[:, 0].tolist()
        error = found[0] * sample + found[1] * prediction + found[2] * noise - result
        if error.abs().max() > EXACT * result.abs().max():
            kind = type(scheduler).__name__
            raise IncompatibleError(
                f"{kind}: its step {number + 1} is more than a sum of latents, prediction and noise",
                "a whole pipeline is for few-step models: those that LCM, TCD, DDIM or Euler draw",
            )
        latents, predicted, noisy = (0.0 if abs(value) < EXACT * found.abs().max() else value for value in found.tolist())
        yield Step(int(timestep), scale, latents, predicted, noisy)


def _seeded(number: int) -> torch.Generator:
    return torch.Generator().manual_seed(1000 + number)

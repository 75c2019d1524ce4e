"""A scheduler's steps as numbers: what it makes of the latents, the U-Net's prediction and fresh noise.

Few-step schedulers are linear: x′ = a·x + b·ε + c·z at each step (LCM: https://arxiv.org/abs/2310.04378, algorithm 3;
TCD, DDIM and Euler likewise). The numbers are found by asking diffusers' own scheduler, so they are its own, with its
config and its version; one that clips, or remembers earlier predictions, does not fit and is refused.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from diffusers import SchedulerMixin

from lcmmerge.draw.presets import Preset
from lcmmerge.draw.sampling import accepted
from lcmmerge.errors import IncompatibleError

PROBES = 32
EXACT = 1e-5  # Euler's scheduler computes in float32


@dataclass(frozen=True, slots=True)
class SchedulerStep:
    """The U-Net is asked about ``scale`` · x at ``timestep``.

    x′ = ``latents`` · x + ``prediction`` · ε + ``noise`` · z.
    """

    timestep: int
    scale: float
    latents: float
    prediction: float
    noise: float


def steps_of(scheduler: SchedulerMixin, preset: Preset) -> tuple[SchedulerStep, ...]:
    """The first step's x is noise of variance 1. Raises IncompatibleError where a step is not linear."""
    scheduler.set_timesteps(preset.steps)
    first, *rest = [_step(scheduler, number, preset) for number in range(len(scheduler.timesteps))]
    sigma = float(scheduler.init_noise_sigma)
    return (replace(first, scale=first.scale * sigma, latents=first.latents * sigma), *rest)


def _step(scheduler: SchedulerMixin, number: int, preset: Preset) -> SchedulerStep:
    """The least squares over random numbers; each element is a step of its own."""
    timestep = scheduler.timesteps[number]
    sample, prediction = torch.randn(2, PROBES, generator=torch.Generator().manual_seed(number), dtype=torch.float64)
    noise = torch.randn(PROBES, generator=_noise(), dtype=torch.float64)
    scale = scheduler.scale_model_input(sample, timestep).double() / sample
    given = accepted(scheduler.step, {**preset.arguments, "generator": _noise()})
    result = scheduler.step(prediction, timestep, sample, **given, return_dict=False)[0].double()
    terms = torch.stack([sample, prediction, noise], 1)
    factors = torch.linalg.lstsq(terms, result[:, None]).solution[:, 0]
    if (terms @ factors - result).abs().max() > EXACT * result.abs().max():
        raise IncompatibleError(
            f"{type(scheduler).__name__}: its step {number + 1} is more than a sum of latents, prediction and noise",
            "a whole pipeline is for few-step models: those that LCM, TCD, DDIM or Euler draw",
        )
    factors[factors.abs() < EXACT * factors.abs().max()] = 0
    return SchedulerStep(int(timestep), scale.median().item(), *factors.tolist())


def _noise() -> torch.Generator:
    """What a scheduler draws its noise from, and we beside it."""
    return torch.Generator().manual_seed(PROBES)

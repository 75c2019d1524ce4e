"""Drawing many pictures with a few network evaluations each, by diffusers' own schedulers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, LCMScheduler, UNet2DConditionModel
from pico import scheduler
from torch import Generator, Tensor

BATCH = 256


@dataclass(frozen=True, slots=True)
class Method:
    """``guidance`` g as diffusers counts it: above 1 every step takes two evaluations."""

    solver: str
    steps: int
    guidance: float = 1.0

    @property
    def evaluations(self) -> int:
        return self.steps * (2 if self.guidance > 1 else 1)

    def scheduler(self) -> Any:
        """Trailing spacing: SD's own, leading one starts far from pure noise at a few steps."""
        config = scheduler().config
        if self.solver == "LCM":
            return LCMScheduler.from_config(config)
        if self.solver == "DDIM":
            return DDIMScheduler.from_config(config, timestep_spacing="trailing", set_alpha_to_one=True)
        plus = self.solver == "DPM-Solver++"
        return DPMSolverMultistepScheduler.from_config(
            config,
            algorithm_type="dpmsolver++" if plus else "dpmsolver",
            final_sigmas_type="zero" if plus else "sigma_min",
            timestep_spacing="trailing",
        )


@torch.no_grad()
def sample(unet: UNet2DConditionModel, prompts: Tensor, digits: Tensor, method: Method, seed: int) -> Tensor:
    """Scaled latents [n, 4, 8, 8] of ``digits`` [n]; picture i has a generator of its own, of seed + i.

    ``prompts`` [11, tokens, hidden]: the ten digits' captions and the empty one.
    """
    dice = [Generator().manual_seed(seed + index) for index in range(len(digits))]
    parts = []
    for start in range(0, len(digits), BATCH):
        chosen = slice(start, start + BATCH)
        parts.append(_sample(unet, prompts[digits[chosen]], prompts[-1:], method, dice[chosen]))
    return torch.cat(parts)


def _sample(unet: UNet2DConditionModel, prompt: Tensor, empty: Tensor, method: Method, dice: list[Generator]) -> Tensor:
    schedule = method.scheduler()
    schedule.set_timesteps(method.steps)
    guided = method.guidance > 1
    hidden = torch.cat([prompt, empty.expand_as(prompt)]) if guided else prompt
    latents = torch.stack([torch.randn(4, 8, 8, generator=one) for one in dice])
    extra = {"generator": dice} if method.solver == "LCM" else {}
    for timestep in schedule.timesteps:
        noise = unet(latents.repeat(2, 1, 1, 1) if guided else latents, timestep, hidden).sample
        if guided:
            told, untold = noise.chunk(2)
            noise = untold + method.guidance * (told - untold)
        latents = schedule.step(noise, timestep, latents, **extra).prev_sample
    return latents

"""Samples of the networks that are being trained, in latents: few steps of the student, many of the teacher."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lcmmerge.draw.presets import BASELINES, Preset, of_sampling
from lcmmerge.draw.sampling import guided, loop
from lcmmerge.train.batch import Batch
from lcmmerge.train.networks import LoraNetworks, Networks

Predict = Callable[[Tensor, Tensor], Tensor]  # z_t [B, C, h, w], t [B] → the U-Net's output
FEW, MANY = of_sampling("lcm", BASELINES["lcm"]), of_sampling("dpm-solver++", BASELINES["dpm-solver++"])


@dataclass(frozen=True, slots=True)
class Sampler:
    """Draws the samples of a validation.

    ``scheduler``: the config of the model's own. ``guidance``: of the teacher, and 1 + w of a student told w.
    ``original_steps``: N, into how many steps the time was cut for training; LCMScheduler samples at some of them.

    Start noise and what a scheduler adds depend on ``seed`` and the shape alone, so that two networks can be compared
    pair by pair.
    """

    scheduler: Mapping[str, Any]
    guidance: float
    seed: int
    original_steps: int = 50

    def few(self, networks: Networks, batch: Batch) -> Tensor:
        """The student's, by LCMScheduler in 4 steps, without classifier-free guidance: z_0 [B, C, h, w] float32."""
        w = torch.full((len(batch.latents),), self.guidance - 1, device=batch.latents.device)
        few = replace(FEW, settings={"original_inference_steps": self.original_steps})
        return self._draw(few, lambda noisy, at: networks.student(noisy, at, batch.prompt, w), batch)

    def few_before(self, networks: Networks, batch: Batch) -> Tensor:
        """The same without the LoRA."""
        assert isinstance(networks, LoraNetworks)
        with networks.without_lora():
            return self.few(networks, batch)

    def many(self, networks: Networks, batch: Batch) -> Tensor:
        """The teacher's, by DPM-Solver++ in 25 steps with guidance: z_0 [B, C, h, w] float32."""
        return self._draw(MANY, self._guided(networks.teacher, batch), batch)

    def many_after(self, networks: Networks, batch: Batch) -> Tensor:
        """The same of the student: for plain diffusion training."""
        return self._draw(MANY, self._guided(lambda z, at, told: networks.student(z, at, told, None), batch), batch)

    def _guided(self, call: Callable[..., Tensor], batch: Batch) -> Predict:
        told = batch.prompt.joined(batch.blank)

        def predict(noisy: Tensor, at: Tensor) -> Tensor:
            prompted, blank = call(noisy.repeat(2, 1, 1, 1), at.repeat(2), told).float().chunk(2)
            return guided(blank, prompted, self.guidance)

        return predict

    def _draw(self, preset: Preset, predict: Predict, batch: Batch) -> Tensor:
        scheduler: Any = preset.build(self.scheduler)
        generator = torch.Generator().manual_seed(self.seed)
        count, device = len(batch.latents), batch.latents.device
        latents: Tensor = torch.randn(batch.latents.shape, generator=generator).to(device) * scheduler.init_noise_sigma
        scheduler.set_timesteps(preset.steps, device=device)
        return loop(scheduler, latents, lambda z, at: predict(z, at.expand(count)).float(), {"generator": generator})

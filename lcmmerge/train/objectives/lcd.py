"""Latent consistency distillation: Algorithm 1 of LCM-LoRA (https://arxiv.org/abs/2311.05556).

One stage, on the PF-ODE augmented by the guidance scale w:
    ẑ_n = z_{n+k} + (1 + w)·Ψ(z_{n+k}, c) − w·Ψ(z_{n+k}, ∅)
    loss = d(f_θ(z_{n+k}, w, c, t_{n+k}), f_θ⁻(ẑ_n, w, c, t_n))
with Ψ a DDIM step. DDIM is linear in (ẑ_0, ε̂), so guiding these and taking one step is the same.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from lcmmerge.train.batch import Batch
from lcmmerge.train.consistency import DISTANCES, Consistency, consistent
from lcmmerge.train.networks import Networks
from lcmmerge.train.objectives import normal_like, uniform


@dataclass(frozen=True, slots=True)
class LatentConsistencyDistillation(Consistency):
    """w is the guidance that the teacher draws with, and that a student with a guidance embedding is told."""

    teaches: ClassVar[bool] = True
    trails: ClassVar[bool] = True

    def loss(self, networks: Networks, batch: Batch, draw: torch.Generator) -> Tensor:
        clean, noise = batch.latents, networks.noise
        device = clean.device
        start, end = (timesteps.to(device) for timesteps in self.grid.draw(len(clean), draw))
        w = uniform(self.w_low, self.w_high, len(clean), draw, device)
        noisy = noise.add(clean, normal_like(clean, draw), start)
        student = consistent(noise, networks.student(noisy, start, batch.prompt, w), noisy, start)
        with torch.no_grad():
            solved = self._solve(networks, noisy, start, end, batch, w)
            target = consistent(noise, networks.target(solved, end, batch.prompt, w), solved, end)
        return DISTANCES[self.distance](student, target)

    @staticmethod
    def _solve(networks: Networks, noisy: Tensor, start: Tensor, end: Tensor, batch: Batch, w: Tensor) -> Tensor:
        """ẑ_n: one DDIM step of the teacher with guidance 1 + w."""
        both = networks.teacher(noisy.repeat(2, 1, 1, 1), start.repeat(2), batch.prompt.joined(batch.blank))
        (clean_c, noise_c), (clean_0, noise_0) = (networks.noise.read(half, noisy, start) for half in both.chunk(2))
        w = w[:, None, None, None]
        return networks.noise.ddim(clean_c + w * (clean_c - clean_0), noise_c + w * (noise_c - noise_0), end)

    def as_dict(self) -> dict[str, Any]:
        return {"objective": "lcd", **asdict(self)}

"""Latent consistency fine-tuning: an LCM on a data set of one's own, without a teacher.

Section 4.4 of https://arxiv.org/abs/2310.04378: the same ε makes z_{n+k} and z_n, and
    loss = d(f_θ(z_{n+k}, w, c, t_{n+k}), f_θ⁻(z_n, w, c, t_n)).
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
class LatentConsistencyFineTuning(Consistency):
    """w is the guidance that an LCM with a guidance embedding is told; others are told nothing."""

    teaches: ClassVar[bool] = False
    trails: ClassVar[bool] = True

    def loss(self, networks: Networks, batch: Batch, draw: torch.Generator) -> Tensor:
        clean, noise = batch.latents, networks.noise
        start, end = (timesteps.to(clean.device) for timesteps in self.grid.draw(len(clean), draw))
        w = uniform(self.w_low, self.w_high, len(clean), draw, clean.device)
        epsilon = normal_like(clean, draw)
        noisy, cleaner = noise.add(clean, epsilon, start), noise.add(clean, epsilon, end)
        student = consistent(noise, networks.student(noisy, start, batch.prompt, w), noisy, start)
        with torch.no_grad():
            target = consistent(noise, networks.target(cleaner, end, batch.prompt, w), cleaner, end)
        return DISTANCES[self.distance](student, target)

    def as_dict(self) -> dict[str, Any]:
        return {"objective": "lcf", **asdict(self)}

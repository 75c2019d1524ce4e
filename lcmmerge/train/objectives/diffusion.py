"""Plain diffusion training, the usual way to a style LoRA: ‖prediction − target‖² at a random timestep.

Weights over timesteps: min-SNR, https://arxiv.org/abs/2303.09556.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from lcmmerge.train.batch import Batch
from lcmmerge.train.networks import Networks
from lcmmerge.train.noise import Noise
from lcmmerge.train.objectives import normal_like


@dataclass(frozen=True, slots=True)
class Diffusion:
    """The loss of a diffusion model: the error of its predicted noise.

    ``snr_gamma``: γ of min-SNR, 5 in its paper; None weighs all timesteps alike.
    """

    teaches: ClassVar[bool] = False
    trails: ClassVar[bool] = False

    snr_gamma: float | None = None

    def loss(self, networks: Networks, batch: Batch, draw: torch.Generator) -> Tensor:
        clean, noise = batch.latents, networks.noise
        timesteps = torch.randint(noise.steps, (len(clean),), generator=draw).to(clean.device)
        epsilon = normal_like(clean, draw)
        output = networks.student(noise.add(clean, epsilon, timesteps), timesteps, batch.prompt, None)
        errors = (output.float() - noise.target(clean, epsilon, timesteps)).square().mean((1, 2, 3))
        return (errors * self._weights(noise, timesteps)).mean()

    def _weights(self, noise: Noise, timesteps: Tensor) -> Tensor:
        """min(SNR, γ) / SNR for ε, and / (SNR + 1) for v, with SNR = α²/σ²."""
        if self.snr_gamma is None:
            return torch.ones(len(timesteps), device=timesteps.device)
        snr = (noise.alphas[timesteps] / noise.sigmas[timesteps]).square()
        return snr.clamp(max=self.snr_gamma) / (snr + (noise.prediction == "v_prediction"))

    def as_dict(self) -> dict[str, Any]:
        return {"objective": "diffusion", **asdict(self)}

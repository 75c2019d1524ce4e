"""The forward process z_t = α_t·z + σ_t·ε, and what a U-Net's output says about z and ε.

α_t = √ᾱ_t and σ_t = √(1 − ᾱ_t), with ᾱ the scheduler's ``alphas_cumprod`` (DDPM, https://arxiv.org/abs/2006.11239).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
from diffusers import DDPMScheduler
from torch import Tensor

from lcmmerge.errors import IncompatibleError

PREDICTIONS = ("epsilon", "v_prediction")


@dataclass(frozen=True, slots=True)
class Noise:
    """The forward process of a model's scheduler.

    ``alphas``, ``sigmas``: [T] float32. ``prediction``: ``epsilon``, or ``v_prediction`` with v = α·ε − σ·z.
    """

    alphas: Tensor
    sigmas: Tensor
    prediction: str = "epsilon"

    @classmethod
    def of(cls, scheduler: Mapping[str, Any]) -> Self:
        """From a diffusers scheduler's config. Raises IncompatibleError of another prediction, or of damage."""
        prediction = scheduler.get("prediction_type", "epsilon")
        if prediction not in PREDICTIONS:
            raise IncompatibleError(f"a model that predicts {prediction!r} cannot be trained", "ε and v can be")
        try:
            alphas_cumprod = DDPMScheduler.from_config(dict(scheduler)).alphas_cumprod.double()
        except Exception as error:  # of settings that no scheduler has, whatever torch and diffusers raise
            what = " ".join(str(error).split()) or type(error).__name__
            cure = "name another model's folder with --config-from"
            raise IncompatibleError(f"the model's scheduler_config.json describes no noise ({what})", cure) from None
        return cls(alphas_cumprod.sqrt().float(), (1 - alphas_cumprod).sqrt().float(), prediction)

    @property
    def steps(self) -> int:
        """T, the number of training timesteps."""
        return len(self.alphas)

    def to(self, device: torch.device) -> Self:
        return type(self)(self.alphas.to(device), self.sigmas.to(device), self.prediction)

    def at(self, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """α and σ at ``timesteps`` [B], as [B, 1, 1, 1]."""
        return self.alphas[timesteps][:, None, None, None], self.sigmas[timesteps][:, None, None, None]

    def add(self, clean: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        alpha, sigma = self.at(timesteps)
        return alpha * clean + sigma * noise

    def target(self, clean: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """What the U-Net is to predict."""
        alpha, sigma = self.at(timesteps)
        return noise if self.prediction == "epsilon" else alpha * noise - sigma * clean

    def read(self, output: Tensor, noisy: Tensor, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """(ẑ_0, ε̂) from a U-Net's ``output``, in float32."""
        alpha, sigma = self.at(timesteps)
        output, noisy = output.float(), noisy.float()
        if self.prediction == "epsilon":
            return (noisy - sigma * output) / alpha, output
        return alpha * noisy - sigma * output, sigma * noisy + alpha * output

    def ddim(self, clean: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """One deterministic DDIM step to ``timesteps``: α·ẑ_0 + σ·ε̂ (https://arxiv.org/abs/2010.02502, η = 0)."""
        return self.add(clean, noise, timesteps)

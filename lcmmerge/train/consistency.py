"""Consistency functions: f(z, t) = c_skip(t)·z + c_out(t)·ẑ_0, the grid on which they are learnt, and distances.

Latent Consistency Models, https://arxiv.org/abs/2310.04378; c_skip, c_out and the distances as in Consistency Models,
https://arxiv.org/abs/2303.01469, and https://arxiv.org/abs/2310.14189 (pseudo-Huber).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lcmmerge.train.noise import Noise

SIGMA_DATA = 0.5
TIMESTEP_SCALING = 10.0  # as LCMScheduler samples


def boundary(timesteps: Tensor) -> tuple[Tensor, Tensor]:
    """c_skip = σ_d²/((s·t)² + σ_d²) and c_out = s·t/√((s·t)² + σ_d²) for ``timesteps`` [B], as [B, 1, 1, 1].

    f(z, 0) = z: the boundary condition of a consistency function.
    """
    scaled = TIMESTEP_SCALING * timesteps.double()
    norm = scaled.square() + SIGMA_DATA**2
    skip, out = SIGMA_DATA**2 / norm, scaled / norm.sqrt()
    return skip.float()[:, None, None, None], out.float()[:, None, None, None]


def consistent(noise: Noise, output: Tensor, noisy: Tensor, timesteps: Tensor) -> Tensor:
    """f(z, t) from the U-Net's ``output`` for ``noisy`` z, both [B, C, h, w]."""
    skip, out = boundary(timesteps)
    return skip * noisy + out * noise.read(output, noisy, timesteps)[0]


@dataclass(frozen=True, slots=True)
class Grid:
    """The timesteps of the skipping step.

    ``count`` timesteps evenly over ``total``: k−1, 2k−1, …, T−1, with k = T / N the skipping step.
    """

    count: int = 50
    total: int = 1000

    @property
    def skip(self) -> int:
        return self.total // self.count

    def draw(self, batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """t_{n+k} and t_n, each [batch]; the first step goes to t = 0."""
        index = torch.randint(self.count, (batch,), generator=generator)
        start = (index + 1) * self.skip - 1
        return start, (start - self.skip).clamp(min=0)


def pseudo_huber(a: Tensor, b: Tensor, c: float = 0.001) -> Tensor:
    """mean of √((a − b)² + c²) − c."""
    return ((a - b).square() + c * c).sqrt().sub(c).mean()


def l2(a: Tensor, b: Tensor) -> Tensor:
    """mean of (a − b)²."""
    return (a - b).square().mean()


DISTANCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"huber": pseudo_huber, "l2": l2}


@dataclass(frozen=True, slots=True)
class Consistency:
    """What distillation and fine-tuning are asked for alike; ``distance``: of DISTANCES.

    ``w_low`` to ``w_high``: from where w is drawn, uniformly; the guidance scale of diffusers is 1 + w. The defaults
    are those of the authors' scripts for Stable Diffusion; SDXL's begin at w = 3.
    """

    w_low: float = 5.0
    w_high: float = 15.0
    distance: str = "huber"
    grid: Grid = Grid()

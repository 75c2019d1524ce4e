"""The ground truth: a classifier of digits and looks, and distances between sets of pictures.

It never meets the diffusion model: it learns from rendered pictures, a part of them blurred, noisy or passed through
the autoencoder, and is tested on handwritten digits that neither it nor the model has seen.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from diffusers import AutoencoderKL
from torch import Generator, Tensor, nn
from torch.nn.functional import avg_pool2d, cross_entropy

from embedded.loop import Progress, minimise
from embedded.scenes import EVERYTHING, STYLES, draw
from embedded.vae import decoded, encoded

LOOKS = {"everything": EVERYTHING} | STYLES
POOL, STEPS, BATCH, RATE = 5000, 1000, 96, 1.5e-3
RESAMPLES = 300


class Judge(nn.Module):
    """Pictures [n, 3, 64, 64] in −1…1 → features [n, 96], digit logits [n, 10], look logits [n, 4]."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after, kernel, stride in (
            (3, 16, 5, 2), (16, 32, 3, 2), (32, 64, 3, 2), (64, 64, 3, 1), (64, 96, 3, 2),
        ):  # fmt: skip
            layers += [nn.Conv2d(before, after, kernel, stride, kernel // 2), nn.GroupNorm(8, after), nn.SiLU()]
        self.trunk = nn.Sequential(*layers, nn.Flatten(), nn.Dropout(0.2), nn.Linear(96 * 16, 96), nn.SiLU())
        self.digit = nn.Linear(96, 10)
        self.look = nn.Linear(96, len(LOOKS))

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        features = self.trunk(pictures)
        return features, self.digit(features), self.look(features)


@dataclass(frozen=True, slots=True)
class Verdict:
    """``features`` [n, 96], ``pixels`` [n, 768]: 16 × 16 RGB; ``digits`` and ``looks`` [n]: the judge's opinion."""

    features: Tensor
    pixels: Tensor
    digits: Tensor
    looks: Tensor


def train(vae: AutoencoderKL, progress: Progress) -> Judge:
    torch.manual_seed(0)
    parts = [draw(look, POOL, seed=50_000 + index) for index, look in enumerate(LOOKS.values())]
    pictures = torch.cat([part for part, _ in parts])
    digits = torch.cat([part for _, part in parts])
    looks = torch.arange(len(LOOKS)).repeat_interleave(POOL)
    dice = Generator().manual_seed(0)
    passed = torch.rand(len(pictures), generator=dice) < 0.4
    pictures[passed] = decoded(vae, encoded(vae, pictures[passed]) * vae.config["scaling_factor"])
    judge = Judge()

    def loss(step: int) -> Tensor:
        chosen = torch.randint(len(pictures), (BATCH,), generator=dice)
        _, digit, look = judge(_worn(pictures[chosen], dice))
        return cross_entropy(digit, digits[chosen], label_smoothing=0.02) + cross_entropy(look, looks[chosen])

    minimise(judge.parameters(), loss, STEPS, RATE, progress)
    return judge.eval().requires_grad_(False)


@torch.no_grad()
def judged(judge: Judge, pictures: Tensor) -> Verdict:
    parts = [judge(batch) for batch in pictures.split(256)]  # type: ignore[no-untyped-call]
    features, digits, looks = (torch.cat([part[index] for part in parts]) for index in range(3))
    return Verdict(features, avg_pool2d(pictures, 4).flatten(1), digits.argmax(1), looks.argmax(1))


def energy_distance(ours: Tensor, theirs: Tensor) -> tuple[float, float, float]:
    """2 E‖x − y‖ − E‖x − x′‖ − E‖y − y′‖ without the pairs i = i, and its bootstrap 95 % interval over ``ours``.

    ``ours`` [n, d], ``theirs`` [m, d]. Székely & Rizzo, https://doi.org/10.1016/j.jspi.2013.03.018
    """
    count, others = len(ours), len(theirs)
    across = torch.cdist(ours, theirs).mean(1)
    within = torch.cdist(ours, ours)
    floor = float(torch.cdist(theirs, theirs).sum()) / (others * (others - 1))
    dice = Generator().manual_seed(0)

    def distance(weights: Tensor) -> float:
        pairs = count**2 - float((weights**2).sum())
        return 2 * float(weights @ across) / count - float(weights @ within @ weights) / pairs - floor

    drawn = [
        distance(torch.bincount(torch.randint(count, (count,), generator=dice), minlength=count).float())
        for _ in range(RESAMPLES)
    ]
    low, high = torch.tensor(drawn).quantile(torch.tensor([0.025, 0.975])).tolist()
    return distance(torch.ones(count)), low, high


def proportion(hits: Tensor) -> tuple[float, float, float]:
    """The share of ``hits`` [n] (bool) and its Wilson 95 % interval."""
    count, share, z = len(hits), float(hits.float().mean()), 1.96
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * (share * (1 - share) / count + z * z / (4 * count**2)) ** 0.5
    return share, middle - half, middle + half


def _worn(pictures: Tensor, dice: Generator) -> Tensor:
    """A third blurred, a third noisy."""
    kind = torch.randint(3, (len(pictures), 1, 1, 1), generator=dice)
    noise = 0.1 * torch.randn(pictures.shape, generator=dice)
    blurred = avg_pool2d(pictures, 3, 1, 1, count_include_pad=False)
    return torch.where(kind == 0, pictures, torch.where(kind == 1, pictures + noise, blurred))

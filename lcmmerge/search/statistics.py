"""Distances between two sets of samples that were drawn pairwise from the same noise, and their uncertainty."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

BANDS = 4  # of spatial frequency
RESAMPLES = 400
LEVEL = 0.95

# (weights [B, n]: how often each sample counts, rows sum to n) → the statistic of each resample, [B]
Statistic = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure with its uncertainty. ``value``, and the bounds of its bootstrap interval at 95 %."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Tensor) -> Estimate:
        """``values``: [1 + B], the statistic of what was measured and of each resample."""
        tail = (1 - LEVEL) / 2
        low, high = torch.quantile(values[1:].double(), torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
        return cls(float(values[0]), low, high)

    def as_list(self) -> list[float]:
        return [self.value, self.low, self.high]


def resamples(count: int, seed: int = 0, number: int = RESAMPLES) -> Tensor:
    """[number, count] float64: how often each of ``count`` samples is drawn, with replacement."""
    draws = torch.randint(count, (number, count), generator=torch.Generator().manual_seed(seed))
    alike = (draws == draws[:, :1]).all(1)  # one sample alone has no pairs: give it another
    draws[alike, 0] = (draws[alike, 0] + 1) % count
    return torch.zeros(number, count, dtype=torch.float64).scatter_add_(1, draws, torch.ones(draws.shape).double())


def once(count: int) -> Tensor:
    """[1, count]: every sample counts once."""
    return torch.ones(1, count, dtype=torch.float64)


def energy_distance(ours: Tensor, theirs: Tensor) -> Statistic:
    """2·E‖x − y‖ − E‖x − x′‖ − E‖y − y′‖ of ``ours`` [n, …] and ``theirs`` [n, …], per √dimension.

    Pairs i = i are left out everywhere: x_i and y_i come of one noise, so they are no independent pair
    (https://doi.org/10.1016/j.jspi.2013.03.018).
    """
    x, y = (samples.flatten(1).double() for samples in (ours, theirs))
    scale = x.shape[1] ** 0.5
    cross, within_x, within_y = (torch.cdist(a, b) / scale for a, b in ((x, y), (x, x), (y, y)))
    return _over_pairs(cross + cross.T - within_x - within_y)


def kernel_distance(ours: Tensor, theirs: Tensor) -> Statistic:
    """E k(x, x′) + E k(y, y′) − 2·E k(x, y) of features [n, d] each, with k(x, y) = (x·y / d + 1)³.

    The squared maximum mean discrepancy without bias (https://arxiv.org/abs/1801.01401), here too without pairs i = i.
    """
    x, y = ours.double(), theirs.double()
    cross, within_x, within_y = ((a @ b.T / x.shape[1] + 1) ** 3 for a, b in ((x, y), (x, x), (y, y)))
    return _over_pairs(within_x + within_y - cross - cross.T)


def _over_pairs(kernel: Tensor) -> Statistic:
    """The mean of ``kernel`` [n, n] over pairs of different samples."""
    kernel.fill_diagonal_(0)

    def statistic(weights: Tensor) -> Tensor:
        pairs = weights.sum(1).square() - weights.square().sum(1)
        found: Tensor = ((weights @ kernel) * weights).sum(1) / pairs
        return found

    return statistic


def frechet_distance(ours: Tensor, theirs: Tensor) -> Statistic:
    """‖μ − ν‖² + tr(Σ + T − 2(ΣT)^½) of the means and covariances of features [n, d] each.

    With deviations A, B [n, d] from the means, so that Σ = AᵀA, tr (ΣT)^½ is the sum of the singular values of ABᵀ:
    n is small, d is not (https://arxiv.org/abs/1706.08500).
    """
    x, y = ours.double(), theirs.double()
    within_x, within_y, cross = x @ x.T, y @ y.T, x @ y.T

    def statistic(weights: Tensor) -> Tensor:
        share = weights / weights.sum(1, keepdim=True)
        means = ((share @ (within_x + within_y - 2 * cross)) * share).sum(1)
        centre = torch.eye(len(x), dtype=torch.float64) - share[:, None, :]  # what takes the mean away from each row
        scale = (weights / (weights.sum(1, keepdim=True) - 1)).sqrt()
        grams = (within_x, within_y, cross)
        covariances = [centre @ gram @ centre.mT * scale[:, :, None] * scale[:, None, :] for gram in grams]
        ours, theirs, root = covariances
        traces: Tensor = (ours + theirs).diagonal(dim1=1, dim2=2).sum(1)
        found: Tensor = means + traces - 2 * torch.linalg.svdvals(root).sum(1)
        return found

    return statistic


def mean(values: Tensor) -> Statistic:
    """Of one number for each sample, [n]."""
    values = values.double()

    def statistic(weights: Tensor) -> Tensor:
        return weights @ values / weights.sum(1)

    return statistic


def paired_error(ours: Tensor, theirs: Tensor) -> Statistic:
    """The mean of (x_i − y_i)²."""
    return mean((ours - theirs).double().square().flatten(1).mean(1))


def spectrum_error(ours: Tensor, theirs: Tensor) -> Statistic:
    """How far the mean, the spread and the spectrum of each latent channel are apart, [n, C, h, w] each.

    The mean over channels and six features: |Δ mean|, |Δ standard deviation|, and a quarter of |Δ log power| in each
    of four bands.
    """
    x, y = features(ours), features(theirs)

    def statistic(weights: Tensor) -> Tensor:
        share = weights / weights.sum(1, keepdim=True)
        first, second = share @ x.flatten(1), share @ y.flatten(1)
        return _moments(first, x.shape[1:]).sub(_moments(second, y.shape[1:])).abs().mean((1, 2))

    return statistic


def gram_distance(ours: Tensor, theirs: Tensor) -> Statistic:
    """‖G − G′‖ / ‖G′‖ of the mean Gram matrices of [n, C, h, w] each; what is at which place does not count."""
    x, y = gram(ours).flatten(1), gram(theirs).flatten(1)

    def statistic(weights: Tensor) -> Tensor:
        share = weights / weights.sum(1, keepdim=True)
        first, second = share @ x, share @ y
        found: Tensor = torch.linalg.vector_norm(first - second, dim=1) / torch.linalg.vector_norm(second, dim=1)
        return found

    return statistic


def gram(latents: Tensor) -> Tensor:
    """[n, 3C + 1, 3C + 1]: the mean products of the channels, their differences to the right and below, and 1.

    Beside 1 stand the channels' means: the palette.
    """
    latents = latents.double()
    right = latents.roll(-1, 3) - latents
    below = latents.roll(-1, 2) - latents
    planes = torch.cat([latents, right, below, torch.ones_like(latents[:, :1])], 1)[..., :-1, :-1].flatten(2)
    return planes @ planes.mT / planes.shape[2]


def features(latents: Tensor) -> Tensor:
    """[n, C, 2 + BANDS]: each channel's mean and mean square, and its power in bands of spatial frequency."""
    latents = latents.double()
    height, width = latents.shape[-2:]
    power = torch.fft.fft2(latents, norm="ortho").abs().square()
    vertical = torch.fft.fftfreq(height, dtype=torch.float64)[:, None]
    radius = (vertical.square() + torch.fft.fftfreq(width, dtype=torch.float64).square()).sqrt()
    band = (radius / 0.5 * BANDS).ceil().long().clamp(max=BANDS)  # 0 is the mean's, which is there already
    powers = torch.stack([power[..., band == number].sum(-1) for number in range(1, BANDS + 1)], -1)
    means = torch.stack([latents.mean((2, 3)), latents.square().mean((2, 3))], -1)
    return torch.cat([means, powers], -1)


def _moments(averages: Tensor, shape: torch.Size) -> Tensor:
    """[B, C·(2 + BANDS)] averages → [B, C, 2 + BANDS]: mean, standard deviation, log powers."""
    mean, square, *powers = averages.view(-1, *shape).unbind(-1)
    spread = (square - mean.square()).clamp(min=0).sqrt()
    logs = [power.clamp(min=1e-12).log() / BANDS for power in powers]
    return torch.stack([mean, spread, *logs], -1)

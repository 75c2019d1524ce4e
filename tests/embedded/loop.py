"""The training loop of the stages that start from nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from math import cos, pi

import torch
from torch import Tensor, nn

WARMUP = 50  # steps
Progress = Callable[[int, int, float], None]
"""Called with the step, the number of steps and the loss."""


def minimise(
    parameters: Iterable[nn.Parameter],
    loss: Callable[[int], Tensor],
    steps: int,
    rate: float,
    progress: Progress,
    each: Callable[[int], None] = lambda step: None,
) -> None:
    """AdamW with a linear warm-up and a cosine to zero; ``each`` runs after every step."""
    parameters = list(parameters)
    optimizer = torch.optim.AdamW(parameters, rate, weight_decay=1e-4, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / WARMUP) * (1 + cos(pi * step / steps)) / 2
    )
    for step in range(steps):
        optimizer.zero_grad()
        value = loss(step)
        value.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        each(step)
        progress(step + 1, steps, value.item())

"""Error-aware rounding: of some scales for a group of numbers the one by which they come closest to what they were.

What is least is ‖(Ŵ − W)X‖ for each output row, X diagonal and of ones. The nearest codes are the best for a scale, so
the scale is what can be chosen: a smaller one clips the largest numbers and brings the many others closer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lcmmerge.tensors.encodings.base import Encoding, Parts

if TYPE_CHECKING:
    from torch import Tensor


def encode(encoding: Encoding, rows: Tensor, parts: Parts, peak: float) -> None:
    """As the encoding's own ``encode`` to nearest does, but for scales: no group's error is larger than by that."""
    import torch

    scales = encoding.scales
    assert scales
    width = rows.shape[1]
    trial = encoding.allocate(tuple(rows.shape), rows.device)
    best = torch.ones(len(rows), width // (scales.group or width), device=rows.device)
    least = torch.full_like(best, torch.inf, dtype=rows.dtype)
    for factor in (1.0, *scales.factors):
        factors = torch.full_like(best, factor)
        scales.encode(rows, trial, None, peak, factors)
        error = _sums((encoding.decode(trial) - rows).square_().view(*best.shape, -1))
        closer = error < least  # never where a scale overflows
        best, least = factors.where(closer, best), error.where(closer, least)
    scales.encode(rows, parts, None, peak, best)


def _sums(numbers: Tensor) -> Tensor:
    """Over the last dimension, by halves: the same bits on every machine, and however many rows there are."""
    while (size := numbers.shape[-1]) > 1:
        half = size // 2
        sums = numbers[..., :half] + numbers[..., half : 2 * half]
        if size % 2:
            sums[..., 0] += numbers[..., -1]
        numbers = sums
    return numbers[..., 0]

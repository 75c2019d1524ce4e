"""Which of a Δ's numbers are the largest in magnitude: what several methods keep."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def largest(delta: Tensor, count: int) -> Tensor | None:
    """Booleans of Δ's shape: its ``count`` largest magnitudes, None for all; Δ is overwritten.

    Of those that are equal at the edge, the first in the tensor.
    """
    numel = delta.numel()
    if count == numel:
        return None
    magnitudes = delta.reshape(-1).abs_()
    edge = ascending(magnitudes, numel - count) if count else float("inf")
    kept = magnitudes > edge
    if count and edge:  # where it is 0, all that is left is 0 too
        equal = (magnitudes == edge).nonzero().flatten()
        kept[equal[: count - int(kept.sum())]] = True
    return kept.view(delta.shape)


def ascending(values: Tensor, place: int) -> float:
    """The value that would be at ``place`` if they were sorted."""
    if values.device.type != "cpu":
        return float(values.kthvalue(place + 1).values)
    import numpy as np  # whose selection takes a sixth of torch's time, and no array of indices

    return float(np.partition(values.numpy(), place)[place])

"""A merge method in its own words, for a whole parameter in memory: what a fuse in blocks is compared with."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lcmmerge.merge.methods import complete, method


def made(
    name: str, weights: Tensor, deltas: list[Tensor], strengths: Sequence[float], called: Sequence[str] = (),
    **given: float,
) -> Tensor:  # fmt: skip
    """The method's words, for a whole parameter of which all is in memory; ``called``: it and each term, by name."""
    found, parameters = method(name), complete(name, given)
    if found.weigh:
        stacked = torch.stack(deltas).double()
        flat = stacked.flatten(1) if not found.per_row(parameters) else stacked.movedim(1, 0)
        weighed = found.weigh(flat @ flat.mT, torch.tensor(strengths, dtype=torch.float64), parameters)
        shares = weighed.expand(len(weights), -1)  # one for each row
        return (weights + torch.einsum("rk,krc->rc", shares, stacked)).to(weights.dtype)
    names = called or [f"W/{number}" for number in range(len(deltas))]
    kept = [found.keep(delta.clone(), parameters, label) if found.keep else None
            for delta, label in zip(deltas, names, strict=True)]  # fmt: skip
    parts = [delta.clone() if mask is None else delta * mask for delta, mask in zip(deltas, kept, strict=True)]
    assert found.combine
    return found.combine(weights.clone(), parts, strengths, parameters)


def most(name: str, count: int) -> int:
    """So many terms, or as many as the method merges."""
    return min(count, method(name).terms or count)

"""DELLA-Merging: as DARE, but the larger a number of Δ is within its output row, the likelier it is kept.

Of a row's n numbers the one of rank r (0 for the smallest magnitude) is kept with probability
density + epsilon · ((r + 1/2) / n − 1/2), cut to 0.001 … 1, and divided by it: so each is kept on average. With
``elect`` 1, as in the paper, the terms then vote on directions, and are averaged, as in TIES-Merging; else they are
summed. The paper's window of drop probabilities p has its middle at 1 − density and the width ``epsilon``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lcmmerge.merge.methods.base import Method, MethodParameter, Parameters
from lcmmerge.merge.methods.chance import ELECT, SEED, summed, uniform

if TYPE_CHECKING:
    from torch import Tensor

LEAST = 0.001  # of a probability: what is kept so seldom grows a thousandfold


def keep(delta: Tensor, parameters: Parameters, name: str) -> Tensor | None:
    """What a number is multiplied by: 1 / its probability, or 0."""
    chances = uniform(delta, parameters["seed"], name)
    columns = delta.shape[-1]
    for row, chance in zip(delta.reshape(-1, columns), chances.view(-1, columns), strict=True):
        ranks = row.abs().argsort(stable=True).argsort()
        shares = parameters["epsilon"] * ((ranks + 0.5) / columns - 0.5) + parameters["density"]
        shares.clamp_(LEAST, 1)
        chance.copy_((chance < shares) / shares)
    return chances


METHOD = Method(
    "DELLA-Merging",
    "https://arxiv.org/abs/2406.11617",
    summed,
    keep,
    {
        "density": MethodParameter(0.5, 0.001, 1.0, "the share of each term's numbers that is kept"),
        "epsilon": MethodParameter(0.2, 0.0, 1.0, "how much likelier the largest number is kept than the smallest"),
        "elect": MethodParameter(1.0, 0.0, 1.0, ELECT),
        "seed": SEED,
    },
)

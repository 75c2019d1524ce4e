"""DARE (drop and rescale): of each term's Δ a random share ``density`` is kept, and divided by it.

So each Δ is kept on average. With ``elect`` 1 the terms then vote on directions, and are averaged, as in TIES-Merging;
else they are summed. (PEFT's and mergekit's ``dare_linear`` and ``dare_ties``.) Which numbers are kept depends on
``seed``, and on the parameter's and the term's names, and on nothing else: not on other terms, threads or layouts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lcmmerge.merge.methods.base import Method, MethodParameter, Parameters
from lcmmerge.merge.methods.chance import ELECT, SEED, summed, uniform

if TYPE_CHECKING:
    from torch import Tensor


def keep(delta: Tensor, parameters: Parameters, name: str) -> Tensor | None:
    density = parameters["density"]
    return None if density == 1 else uniform(delta, parameters["seed"], name) < density


def combine(weights: Tensor, deltas: Sequence[Tensor], strengths: Sequence[float], parameters: Parameters) -> Tensor:
    rescaled = [strength / parameters["density"] for strength in strengths]
    return summed(weights, deltas, rescaled, parameters)


METHOD = Method(
    "DARE",
    "https://arxiv.org/abs/2311.03099",
    combine,
    keep,
    {
        "density": MethodParameter(0.5, 0.001, 1.0, "the share of each term's numbers that is kept"),
        "elect": MethodParameter(0.0, 0.0, 1.0, ELECT),
        "seed": SEED,
    },
)

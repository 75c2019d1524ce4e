"""ΔW = alpha/rank · (W·a1·a2 + b1·b2), with the factors' shapes as LyCORIS stores them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from lcmmerge.adapters.algebra import columns, flat, ill_shaped, leading, misfit, scale
from lcmmerge.adapters.base import Adapter, Dependent, Example, Patch, Shape

if TYPE_CHECKING:
    from torch import Tensor


def claims(roles: frozenset[str]) -> bool:
    return roles - {"scalar"} == {"a1", "a2", "b1", "b2"}


def rank(patch: Patch) -> int:
    return leading(patch, "a2")


def fit(patch: Patch, shape: Shape) -> str:
    r, s = rank(patch), leading(patch, "b2")
    return ill_shaped(patch, shape, r) or misfit(
        patch, {"a1": (shape[1], r), "a2": (r, shape[1]), "b1": (shape[0], s), "b2": (s, columns(shape))}
    )


def update(patch: Patch, tensors: Mapping[str, Tensor], shape: Shape) -> Dependent:
    """``a1``: [in, r]; ``a2``: [r, in]; ``b1``: [out, r]; ``b2``: [r, in·kh·kw]; 1×1 kernels may follow."""
    factor = scale(patch, tensors, rank(patch))
    a1, a2 = flat(tensors["a1"]), flat(tensors["a2"]) * factor
    shift = (flat(tensors["b1"]) @ flat(tensors["b2"]) * factor).reshape(shape)

    def delta_of(weight: Tensor) -> Tensor:
        inputs_last = weight.movedim(1, -1)
        return (inputs_last @ a1 @ a2).movedim(-1, 1) + shift

    return Dependent(delta_of)


FACTORS = ("a1", "a2", "b1", "b2")
ADAPTER = Adapter(
    "GLoRA", "https://arxiv.org/abs/2306.07967", claims, rank, fit, update,
    names={"lycoris": {f"{role}.weight": role for role in FACTORS}},
    examples=(
        Example(
            (8, 12, 3, 3), {"a1": (12, 3, 1, 1), "a2": (3, 12, 1, 1), "b1": (8, 3, 1, 1), "b2": (3, 12, 3, 3)}
        ),
    ),
    together=(FACTORS,),
)  # fmt: skip

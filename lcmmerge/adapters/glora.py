"""ΔW = alpha/rank · (W·a1·a2 + b1·b2), with the factors' shapes as LyCORIS stores them.

Until May 2024 it stored them the other way round, which shapes tell: what was a1 is a2 now, and b1 is b2.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from lcmmerge.adapters.algebra import columns, flat, ill_shaped, leading, misfit, scale
from lcmmerge.adapters.base import Adapter, Dependent, Example, Patch, Shape

if TYPE_CHECKING:
    from torch import Tensor


def claims(roles: frozenset[str]) -> bool:
    return roles - {"scalar"} == {"a1", "a2", "b1", "b2"}


def rank(patch: Patch) -> int:
    return min(leading(patch, "a1"), leading(patch, "a2"))  # one is [r, in], in either order


def fit(patch: Patch, shape: Shape) -> str:
    newer = _misfit(patch, shape)
    return _misfit(_turned(patch), shape) and newer


def _misfit(patch: Patch, shape: Shape) -> str:
    r, s = leading(patch, "a2"), leading(patch, "b2")
    return ill_shaped(patch, shape, r) or misfit(
        patch, {"a1": (shape[1], r), "a2": (r, shape[1]), "b1": (shape[0], s), "b2": (s, columns(shape))}
    )


def _turned(patch: Patch) -> Patch:
    return replace(patch, roles={TURNED.get(role, role): info for role, info in patch.roles.items()})


def update(patch: Patch, tensors: Mapping[str, Tensor], shape: Shape) -> Dependent:
    """``a1``: [in, r]; ``a2``: [r, in]; ``b1``: [out, r]; ``b2``: [r, in·kh·kw]; 1×1 kernels may follow."""
    if _misfit(patch, shape):
        patch = _turned(patch)
        tensors = {TURNED.get(role, role): tensor for role, tensor in tensors.items()}
    factor = scale(patch, tensors, leading(patch, "a2"))
    a1, a2 = flat(tensors["a1"]), flat(tensors["a2"]) * factor
    shift = (flat(tensors["b1"]) @ flat(tensors["b2"]) * factor).reshape(shape)

    def delta_of(weight: Tensor) -> Tensor:
        inputs_last = weight.movedim(1, -1)
        return (inputs_last @ a1 @ a2).movedim(-1, 1) + shift

    return Dependent(delta_of)


FACTORS = ("a1", "a2", "b1", "b2")
TURNED = {"a1": "a2", "a2": "a1", "b1": "b2", "b2": "b1"}
ADAPTER = Adapter(
    "GLoRA", "https://arxiv.org/abs/2306.07967", claims, rank, fit, update,
    names={"lycoris": {f"{role}.weight": role for role in FACTORS}},
    examples=(
        Example(
            (8, 12, 3, 3), {"a1": (12, 3, 1, 1), "a2": (3, 12, 1, 1), "b1": (8, 3, 1, 1), "b2": (3, 12, 3, 3)}
        ),
        Example((8, 12), {"a1": (3, 12), "a2": (12, 3), "b1": (3, 12), "b2": (8, 3)}),
    ),
    together=(FACTORS,),
)  # fmt: skip

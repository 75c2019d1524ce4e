"""Δγ = w_norm, Δβ = b_norm: the differences of a normalization layer's scale and shift."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from lcmmerge.adapters.algebra import dims, wide
from lcmmerge.adapters.base import Adapter, Dense, Example, Patch, Shape

if TYPE_CHECKING:
    from torch import Tensor


def claims(roles: frozenset[str]) -> bool:
    return roles in ({"w_norm"}, {"b_norm"})


def rank(patch: Patch) -> None:
    return None


def fit(patch: Patch, shape: Shape) -> str:
    (role,) = patch.roles
    found = patch.shape(role)
    return "" if found == shape else f"{role} is {dims(found)}, not {dims(shape)}"


def update(patch: Patch, tensors: Mapping[str, Tensor], shape: Shape) -> Dense:
    """``w_norm``, ``b_norm``: [channels]."""
    (role,) = patch.roles
    return Dense(wide(tensors[role]))


ADAPTER = Adapter(
    "norm difference", "https://github.com/KohakuBlueleaf/LyCORIS", claims, rank, fit, update,
    names={"lycoris": {"w_norm": "w_norm", "b_norm": "b_norm"}},
    examples=(Example((8,), {"w_norm": (8,)}), Example((8,), {"b_norm": (8,)})),
)  # fmt: skip

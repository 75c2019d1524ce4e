"""ΔW = diff, Δb = diff_b: the whole difference, stored as it is; behind a module's name, or a parameter's (ComfyUI)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from lcmmerge.adapters.algebra import dims, wide
from lcmmerge.adapters.base import Adapter, Dense, Example, Patch, Shape

if TYPE_CHECKING:
    from torch import Tensor


def claims(roles: frozenset[str]) -> bool:
    return roles in ({"diff"}, {"diff_b"})


def rank(patch: Patch) -> None:
    return None


def fit(patch: Patch, shape: Shape) -> str:
    (role,) = patch.roles
    found = patch.shape(role)
    return "" if _core(found) == _core(shape) else f"{role} is {dims(found)}, not {dims(shape)}"


def _core(shape: Shape) -> Shape:
    """[out, in] and [out, in, 1, 1] are the same numbers in the same order."""
    return tuple(size for size in shape if size != 1)


def update(patch: Patch, tensors: Mapping[str, Tensor], shape: Shape) -> Dense:
    (role,) = patch.roles
    return Dense(wide(tensors[role]).reshape(shape))


ADAPTER = Adapter(
    "full difference", "https://github.com/KohakuBlueleaf/LyCORIS", claims, rank, fit, update,
    names={"lycoris": {
        "diff": "diff", "weight.diff": "diff", "scale.diff": "diff", "diff_b": "diff_b", "bias.diff": "diff_b",
    }},
    examples=(Example((8, 12), {"diff": (8, 12, 1, 1)}), Example((8,), {"diff_b": (8,)})),
)  # fmt: skip

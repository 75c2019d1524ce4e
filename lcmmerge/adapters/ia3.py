"""W′ = l ⊙ W with a vector l over the inputs or the outputs.

``scale_in``, ``scale_out``: l itself, as PEFT stores it; an output scale also scales the bias.
``shift_in``, ``shift_out``: l − 1, as LyCORIS stores it (``weight`` beside the flag ``on_input``).
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import TYPE_CHECKING

from lcmmerge.adapters.algebra import dims, wide
from lcmmerge.adapters.base import Adapter, Dependent, Example, Patch, Shape

if TYPE_CHECKING:
    from torch import Tensor

ROLES = {"scale_in", "scale_out", "shift_in", "shift_out"}


def claims(roles: frozenset[str]) -> bool:
    return len(roles) == 1 and roles <= ROLES


def rank(patch: Patch) -> None:
    return None


def fit(patch: Patch, shape: Shape) -> str:
    (role,) = patch.roles
    axis = 1 if role.endswith("_in") else 0
    if len(shape) <= axis:
        return f"the parameter is {dims(shape)} and has no inputs"
    found = patch.shape(role)
    return "" if prod(found) == shape[axis] else f"{role} is {dims(found)}, not {shape[axis]} values"


def update(patch: Patch, tensors: Mapping[str, Tensor], shape: Shape) -> Dependent:
    (role,) = patch.roles
    axis = 1 if role.endswith("_in") else 0
    vector = wide(tensors[role]).reshape([size if dim == axis else 1 for dim, size in enumerate(shape)])
    shift = vector - 1 if role.startswith("scale") else vector
    return Dependent(lambda weight: weight * shift)


ADAPTER = Adapter(
    "(IA)³", "https://arxiv.org/abs/2205.05638", claims, rank, fit, update,
    names={"lycoris": {"on_input": "on_input"}, "peft": {"ia3_l": "ia3_l"}},
    examples=(
        Example((8, 12), {"scale_in": (1, 12)}),
        Example((8,), {"scale_out": (8, 1)}),
        Example((8, 12, 3, 3), {"shift_in": (1, 12, 1, 1)}),
        Example((8, 12), {"shift_out": (8,)}),
    ),
    together=(("weight", "on_input"),),
    peft_type="IA3",
)  # fmt: skip

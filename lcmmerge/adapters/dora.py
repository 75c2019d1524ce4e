"""W′ = m · V/‖V‖ with V = W + ΔW, ΔW from LoRA, LoHa or LoKr.

The norm is taken per output row (PEFT, LyCORIS) or per input column (LyCORIS with ``wd_on_out=False``).
LyCORIS' ``dora_scale`` tells which by its shape: [out, 1, …] or [out] is rows, [1, in, 1, …] is columns.
PEFT's ``lora_magnitude_vector`` ([out], or [1, out, 1, 1] for a convolution), ``magnitude`` in ai-toolkit's files, is
always rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import prod
from typing import TYPE_CHECKING

from lcmmerge.adapters import loha, lokr, lora
from lcmmerge.adapters.algebra import dims, wide
from lcmmerge.adapters.base import SHARED, Adapter, Dense, Dependent, Example, Factored, Patch, Shape

if TYPE_CHECKING:
    from torch import Tensor

MAGNITUDES = frozenset({"dora_scale", "magnitude"})
EPSILON = 2.0**-23  # float32's
DIRECTIONS = (lora.ADAPTER, loha.ADAPTER, lokr.ADAPTER)


def claims(roles: frozenset[str]) -> bool:
    return len(roles & MAGNITUDES) == 1 and any(inner.claims(roles - MAGNITUDES) for inner in DIRECTIONS)


def _direction(patch: Patch) -> tuple[Patch, Adapter]:
    roles = {role: info for role, info in patch.roles.items() if role not in MAGNITUDES}
    inner = next(inner for inner in DIRECTIONS if inner.claims(frozenset(roles)))
    return replace(patch, roles=roles), inner


def _kept_axis(patch: Patch, shape: Shape) -> int | None:
    """The axis of W along which m varies, or None where m has neither form."""
    if "magnitude" in patch.roles:
        found = patch.shape("magnitude")
        return 0 if found in ((shape[0],), (1, shape[0], *[1] * (len(shape) - 2))) else None
    found = patch.shape("dora_scale")
    if prod(found) == shape[0] and found[:1] == shape[:1]:
        return 0
    return 1 if prod(found) == shape[1] and found[:2] == (1, shape[1]) else None


def rank(patch: Patch) -> int | None:
    inner_patch, inner = _direction(patch)
    return inner.rank(inner_patch)


def fit(patch: Patch, shape: Shape) -> str:
    inner_patch, inner = _direction(patch)
    if problem := inner.fit(inner_patch, shape):
        return problem
    if _kept_axis(patch, shape) is None:
        (role,) = MAGNITUDES & patch.roles.keys()
        return f"{role} of {dims(patch.shape(role))} is neither per row nor per column of {dims(shape)}"
    return ""


def update(patch: Patch, tensors: Mapping[str, Tensor], shape: Shape) -> Dependent:
    inner_patch, inner = _direction(patch)
    inner_update = inner.update(inner_patch, tensors, shape)
    axis = _kept_axis(patch, shape)
    others = [dim for dim in range(len(shape)) if dim != axis]
    (role,) = MAGNITUDES & patch.roles.keys()
    magnitude = wide(tensors[role]).reshape([size if dim == axis else 1 for dim, size in enumerate(shape)])

    def rows_of(weight: Tensor, rows: slice) -> Tensor:
        import torch

        match inner_update:
            case Factored(up, down):
                direction = weight + (up[rows] @ down).reshape(weight.shape)
            case Dense(delta):
                direction = weight + delta[rows]
            case _:
                raise AssertionError("the direction of a DoRA does not depend on W")
        # LyCORIS' guard against an all-zero row; PEFT has none and differs by 1e-7 / ‖V‖.
        norm: Tensor = torch.linalg.vector_norm(direction, dim=others, keepdim=True) + EPSILON
        return direction * ((magnitude[rows] if axis == 0 else magnitude) / norm) - weight

    return Dependent(lambda weight: rows_of(weight, slice(None)), rows_of if axis == 0 else None)


LOHA = {"hada_w1_a": (8, 3), "hada_w1_b": (3, 12), "hada_w2_a": (8, 3), "hada_w2_b": (3, 12)}
ADAPTER = Adapter(
    "DoRA", "https://arxiv.org/abs/2402.09353", claims, rank, fit, update,
    names={
        SHARED: {"dora_scale": "dora_scale", "magnitude": "magnitude"},
        "peft": {"lora_magnitude_vector": "magnitude", "lora_magnitude_vector.weight": "magnitude"},
    },
    examples=(
        Example((8, 12), {"up": (8, 3), "down": (3, 12), "magnitude": (8,)}),
        Example((8, 12, 3, 3), {"up": (8, 3), "down": (3, 108), "dora_scale": (1, 12, 1, 1)}),
        Example((8, 12), {**LOHA, "dora_scale": (8, 1)}),
        Example((8, 12), {"lokr_w1": (2, 3), "lokr_w2": (4, 4), "dora_scale": (8, 1)}),
    ),
    peft_type="LORA",
)  # fmt: skip

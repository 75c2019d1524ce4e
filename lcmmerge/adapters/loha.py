"""ΔW = alpha/rank · (w1_a @ w1_b) ⊙ (w2_a @ w2_b); with Tucker cores each half is t ×₁ w_a ×₂ w_b."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from lcmmerge.adapters.algebra import (
    columns,
    core_misfit,
    flat,
    ill_shaped,
    leading,
    misfit,
    scale,
    tucker_right,
)
from lcmmerge.adapters.base import Adapter, Dense, Example, Patch, Shape

if TYPE_CHECKING:
    from torch import Tensor

FACTORS = {"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"}
CORES = {"hada_t1", "hada_t2"}


def claims(roles: frozenset[str]) -> bool:
    return roles - {"scalar"} in (FACTORS, FACTORS | CORES)


def rank(patch: Patch) -> int:
    return leading(patch, "hada_w1_b")


def fit(patch: Patch, shape: Shape) -> str:
    problem = ill_shaped(patch, shape, rank(patch))
    return problem or _half_fit(patch, shape, "1") or _half_fit(patch, shape, "2")


def _half_fit(patch: Patch, shape: Shape, half: str) -> str:
    a, b, core = f"hada_w{half}_a", f"hada_w{half}_b", f"hada_t{half}"
    r = leading(patch, b)
    if core not in patch.roles:
        return misfit(patch, {a: (shape[0], r), b: (r, columns(shape))})
    p = leading(patch, a)
    return core_misfit(patch, core, p, r, shape[2:]) or misfit(patch, {a: (p, shape[0]), b: (r, shape[1])})


def update(patch: Patch, tensors: Mapping[str, Tensor], shape: Shape) -> Dense:
    """w_a: [out, r] and w_b: [r, in·kh·kw]; beside cores [r, r, kh, kw], w_a: [r, out] and w_b: [r, in]."""
    delta = _half(tensors, "1") * _half(tensors, "2")
    return Dense((delta * scale(patch, tensors, rank(patch))).reshape(shape))


def _half(tensors: Mapping[str, Tensor], half: str) -> Tensor:
    a, b = flat(tensors[f"hada_w{half}_a"]), flat(tensors[f"hada_w{half}_b"])
    core = tensors.get(f"hada_t{half}")
    return a @ b if core is None else a.T @ tucker_right(core, b)


NAMES = {role: role for role in FACTORS | CORES}
ADAPTER = Adapter(
    "LoHa", "https://arxiv.org/abs/2108.06098", claims, rank, fit, update,
    names={"lycoris": NAMES, "peft": NAMES},
    examples=(
        Example((8, 12), {"hada_w1_a": (8, 3), "hada_w1_b": (3, 12), "hada_w2_a": (8, 3), "hada_w2_b": (3, 12)}),
        Example((8, 12, 3, 3), {
            "hada_w1_a": (3, 8), "hada_w1_b": (3, 12), "hada_t1": (3, 3, 3, 3),
            "hada_w2_a": (3, 8), "hada_w2_b": (3, 12), "hada_t2": (3, 3, 3, 3),
        }),
    ),
    together=(("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"), ("hada_t1", "hada_t2")),
    peft_type="LOHA",
)  # fmt: skip

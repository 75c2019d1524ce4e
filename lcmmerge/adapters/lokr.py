"""ΔW = alpha/rank · w1 ⊗ w2, where w1 and w2 may themselves be products w_a @ w_b, and w2 a Tucker product.

With both halves whole there is no rank: LyCORIS then scales by 1, PEFT by its config's alpha / r. Before its release in
April 2023 LyCORIS factorised a convolution as its flat matrix: the same product, of halves with other shapes.
"""

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

LEFT = ({"lokr_w1"}, {"lokr_w1_a", "lokr_w1_b"})
RIGHT = ({"lokr_w2"}, {"lokr_w2_a", "lokr_w2_b"}, {"lokr_w2_a", "lokr_w2_b", "lokr_t2"})


def claims(roles: frozenset[str]) -> bool:
    return any(roles - {"scalar"} == left | right for left in LEFT for right in RIGHT)


def rank(patch: Patch) -> int | None:
    for role in ("lokr_w2_b", "lokr_w1_b"):
        if role in patch.roles:
            return leading(patch, role)
    return patch.config.get("r")


def fit(patch: Patch, shape: Shape) -> str:
    r = rank(patch)
    if problem := ill_shaped(patch, shape, 1 if r is None else r):
        return problem
    problem = _product_misfit(patch, shape)
    if problem and len(shape) > 2 and "lokr_t2" not in patch.roles:
        return problem if _product_misfit(patch, (shape[0], columns(shape))) else ""
    return problem


def _product_misfit(patch: Patch, shape: Shape) -> str:
    rows, cols = leading(patch, "lokr_w1" if "lokr_w1" in patch.roles else "lokr_w1_a"), _left_columns(patch)
    if not rows or not cols or shape[0] % rows or shape[1] % cols:
        return f"lokr_w1 of {rows}×{cols} does not divide the parameter's {shape[0]}×{shape[1]}"
    return _left_fit(patch, rows, cols) or _right_fit(patch, shape[0] // rows, (shape[1] // cols, *shape[2:]))


def _left_columns(patch: Patch) -> int:
    return columns(patch.shape("lokr_w1" if "lokr_w1" in patch.roles else "lokr_w1_b"))


def _left_fit(patch: Patch, rows: int, cols: int) -> str:
    if "lokr_w1" in patch.roles:
        return misfit(patch, {"lokr_w1": (rows, cols)})
    r = leading(patch, "lokr_w1_b")
    return misfit(patch, {"lokr_w1_a": (rows, r), "lokr_w1_b": (r, cols)})


def _right_fit(patch: Patch, rows: int, rest: Shape) -> str:
    """``rest``: (in / columns of w1, kh, kw)."""
    cols = columns((rows, *rest))
    if "lokr_w2" in patch.roles:
        return misfit(patch, {"lokr_w2": (rows, cols)})
    r = leading(patch, "lokr_w2_b")
    if "lokr_t2" not in patch.roles:
        return misfit(patch, {"lokr_w2_a": (rows, r), "lokr_w2_b": (r, cols)})
    p = leading(patch, "lokr_w2_a")
    return core_misfit(patch, "lokr_t2", p, r, rest[1:]) or misfit(
        patch, {"lokr_w2_a": (p, rows), "lokr_w2_b": (r, rest[0])}
    )


def update(patch: Patch, tensors: Mapping[str, Tensor], shape: Shape) -> Dense:
    """w1: [a, c], w2: [b, d·kh·kw], out = a·b, in = c·d: the flat ΔW is a Kronecker product of matrices."""
    import torch

    left = flat(tensors["lokr_w1"]) if "lokr_w1" in tensors else _product(tensors, "lokr_w1")
    right = flat(tensors["lokr_w2"]) if "lokr_w2" in tensors else _product(tensors, "lokr_w2")
    return Dense((torch.kron(left, right) * scale(patch, tensors, rank(patch))).reshape(shape))


def _product(tensors: Mapping[str, Tensor], half: str) -> Tensor:
    a, b = flat(tensors[f"{half}_a"]), flat(tensors[f"{half}_b"])
    core = tensors.get("lokr_t2") if half == "lokr_w2" else None
    return a @ b if core is None else a.T @ tucker_right(core, b)


NAMES = {role: role for role in set[str]().union(*LEFT, *RIGHT)}
ADAPTER = Adapter(
    "LoKr", "https://arxiv.org/abs/2309.14859", claims, rank, fit, update,
    names={"lycoris": NAMES, "peft": NAMES},
    examples=(
        Example((8, 12), {"lokr_w1": (2, 3), "lokr_w2": (4, 4)}),
        Example((8, 12, 3, 3), {"lokr_w1_a": (2, 1), "lokr_w1_b": (1, 3), "lokr_w2": (4, 4, 3, 3)}),
        Example((8, 12, 3, 3), {"lokr_w1": (2, 3), "lokr_w2_a": (4, 2), "lokr_w2_b": (2, 36)}),
        Example((8, 12, 3, 3), {"lokr_w1": (2, 9), "lokr_w2": (4, 12)}),
        Example((8, 12, 3, 3), {
            "lokr_w1": (2, 3), "lokr_w2_a": (2, 4), "lokr_w2_b": (2, 4), "lokr_t2": (2, 2, 3, 3),
        }),
    ),
    together=(("lokr_w1_a", "lokr_w1_b"), ("lokr_w2_a", "lokr_w2_b")),
    peft_type="LOKR",
)  # fmt: skip

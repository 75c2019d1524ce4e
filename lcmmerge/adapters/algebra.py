"""The shapes and products that several algorithms share.

"Flat" means ``flatten(1)``: a linear weight [out, in] and a convolution [out, in, kh, kw] are both matrices
[out, in·kh·kw], so that a 1×1 convolution and a linear layer take each other's adapters.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod, sqrt
from typing import TYPE_CHECKING

from lcmmerge.adapters.base import Patch, Shape

if TYPE_CHECKING:
    from torch import Tensor


def dims(shape: Shape) -> str:
    return "×".join(map(str, shape)) or "a scalar"


def columns(shape: Shape) -> int:
    return prod(shape[1:])


def no_matrix(shape: Shape) -> str:
    return f"the parameter is {dims(shape)}, no matrix" if len(shape) < 2 or 0 in shape else ""


def misfit(patch: Patch, wanted: Mapping[str, tuple[int, int]]) -> str:
    """One phrase about the first role whose flat shape is not the wanted (rows, columns), or ""."""
    for role, matrix in wanted.items():
        found = patch.shape(role)
        if len(found) < 2 or (found[0], columns(found)) != matrix:
            return f"{role} is {dims(found)}, not {dims(matrix)}"
    return ""


def ill_shaped(patch: Patch, shape: Shape, rank: int) -> str:
    """What makes any low-rank algorithm impossible, or ""."""
    if problem := no_matrix(shape):
        return problem
    if rank < 1:
        return "its rank is 0"
    if "scalar" in patch.roles and prod(patch.shape("scalar")) != 1:
        return f"scalar is {dims(patch.shape('scalar'))}"
    return ""


def core_misfit(patch: Patch, role: str, left: int, right: int, kernel: Shape) -> str:
    """Does a Tucker core [left, right, kh, kw] have the parameter's kernel?"""
    found, wanted = patch.shape(role), (left, right, *kernel)
    return "" if found == wanted else f"{role} is {dims(found)}, not {dims(wanted)}"


def leading(patch: Patch, role: str) -> int:
    """The first dimension of a role's tensor: the rank, for the second factor of a product."""
    return next(iter(patch.shape(role)), 0)


def scale(patch: Patch, tensors: Mapping[str, Tensor], rank: int | None) -> float:
    """alpha / rank (alpha / √rank where rank-stabilized, https://arxiv.org/abs/2312.03732), times ``scalar``.

    A missing alpha means alpha = rank; without a rank there is nothing to scale by.
    """
    factor = 1.0
    if rank is not None:
        alpha = rank if patch.alpha is None else patch.alpha
        factor = alpha / (sqrt(rank) if patch.rank_stabilized else rank)
    return factor * float(wide(tensors["scalar"]).item()) if "scalar" in tensors else factor


def wide(tensor: Tensor) -> Tensor:
    """In float32; what is in float64 is for a parameter that is, and stays so."""
    import torch

    return tensor if tensor.dtype == torch.float64 else tensor.float()


def flat(tensor: Tensor) -> Tensor:
    return wide(tensor.flatten(1))


def tucker_right(core: Tensor, right: Tensor) -> Tensor:
    """core [p, q, kh, kw], right [q, in] → [p, in·kh·kw]: the second mode's product."""
    import torch

    return torch.einsum("pqk,qi->pik", wide(core.flatten(2)), right).flatten(1)

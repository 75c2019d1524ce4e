"""W′ = B_m ⋯ B_1 · W: a product of m butterfly rotations, each block-diagonal under its own permutation.

LyCORIS (``boft_blocks``, stored as a 4-d ``oft_blocks`` [m, k, b, b], k·b = out) rotates the output:
q = x − xᵀ, and a stored alpha is the constraint ‖q‖ ≤ alpha·out. PEFT (``boft_R`` [m, k, b, b],
k·b = in·kh·kw) rotates the input and scales the output by ``boft_s``: q = ½(x − xᵀ), R = (I − q)(I + q)⁻¹,
W′ = s · W·(B_m ⋯ B_1)ᵀ.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from lcmmerge.adapters.algebra import columns, dims, no_matrix, wide
from lcmmerge.adapters.base import Adapter, Dependent, Example, Patch, Shape
from lcmmerge.adapters.oft import rescale_misfit, rescaled_delta
from lcmmerge.adapters.rotation import cayley_minus_identity, constrained

if TYPE_CHECKING:
    from torch import Tensor


def claims(roles: frozenset[str]) -> bool:
    return roles in ({"boft_blocks"}, {"boft_blocks", "rescale"}, {"boft_R", "boft_s"})


def rank(patch: Patch) -> None:
    return None


def fit(patch: Patch, shape: Shape) -> str:
    if problem := no_matrix(shape):
        return problem
    if "boft_blocks" in patch.roles:
        return _blocks_misfit(patch, "boft_blocks", shape[0]) or rescale_misfit(patch, shape)
    found = patch.shape("boft_s")
    if found not in ((shape[0], 1), (1, shape[0])):
        return f"boft_s is {dims(found)}, not {shape[0]}×1"
    return _blocks_misfit(patch, "boft_R", columns(shape))


def _blocks_misfit(patch: Patch, role: str, size: int) -> str:
    """Stage i mixes halves of blocks over a period of b·2^i, which must divide ``size``."""
    found = patch.shape(role)
    if len(found) != 4 or found[2] != found[3] or found[1] * found[2] != size:
        return f"{role} of {dims(found)} do not tile {size}"
    stages, _, block, _ = found
    butterfly = block % 2 == 0 and stages > 0 and size % (block * 2 ** (stages - 1)) == 0
    unpermuted = role == "boft_R" and stages == 1
    return "" if butterfly or unpermuted else f"{role} of {dims(found)} is not a butterfly over {size}"


def update(patch: Patch, tensors: Mapping[str, Tensor], shape: Shape) -> Dependent:
    if "boft_R" in tensors:
        return _input_update(wide(tensors["boft_R"]), tensors["boft_s"])
    blocks = wide(tensors["boft_blocks"])
    turns = cayley_minus_identity(constrained(blocks - blocks.mT, (patch.alpha or 0.0) * shape[0]))

    def delta_of(weight: Tensor) -> Tensor:
        rows = weight.flatten(1)
        for stage, turn in enumerate(turns):
            rows = _turned(rows, turn, (2, turn.shape[-1] // 2 * 2**stage, 1))
        return rescaled_delta((rows - weight.flatten(1)).reshape(shape), weight, tensors.get("rescale"))

    return Dependent(delta_of)


def _input_update(blocks: Tensor, scale: Tensor) -> Dependent:
    turns = cayley_minus_identity((blocks.mT - blocks) / 2)

    def delta_of(weight: Tensor) -> Tensor:
        rows = weight.flatten(1).T
        for stage, turn in enumerate(turns):
            rows = _turned(rows, turn, (2, 2**stage, turn.shape[-1] // 2) if stage else (1, 1, 1))
        delta = (rows.T - weight.flatten(1)).reshape(weight.shape)
        return rescaled_delta(delta, weight, scale)

    return Dependent(delta_of)


def _turned(rows: Tensor, turn: Tensor, period: tuple[int, int, int]) -> Tensor:
    """R·rows, with R permuted: rows [n, …] in periods (i, j, k) come as (j, i, k) under the blocks.

    ``turn``: R − I, [n/b, b, b].
    """
    permuted = rows.reshape(-1, *period, rows.shape[1]).transpose(1, 2)
    moved = turn @ permuted.reshape(*turn.shape[:2], -1)
    return rows + moved.reshape(permuted.shape).transpose(1, 2).reshape(rows.shape)


ADAPTER = Adapter(
    "BOFT", "https://arxiv.org/abs/2311.06243", claims, rank, fit, update,
    names={"peft": {"boft_R": "boft_R", "boft_s": "boft_s"}},  # LyCORIS' are OFT's, told apart by their shape
    examples=(
        Example((8, 12), {"boft_blocks": (3, 4, 2, 2)}),
        Example((8, 12, 3, 3), {"boft_blocks": (2, 2, 4, 4), "rescale": (8, 1, 1, 1)}),
        Example((8, 12), {"boft_R": (2, 6, 2, 2), "boft_s": (8, 1)}),
    ),
    together=(("boft_R", "boft_s"),),
    peft_type="BOFT",
)  # fmt: skip

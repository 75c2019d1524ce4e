"""W′ = R·W with a block-diagonal rotation R.

LyCORIS and kohya (``oft_blocks``, at first ``oft_diag``: [k, b, b], k·b = out) rotate the output: q = x − xᵀ,
W′ = rescale · RᵀW; a stored alpha is the constraint ‖q‖ ≤ alpha·out. PEFT (``oft_R`` [k, b(b−1)/2], k·b = in·kh·kw, or
k = 1 for shared blocks) rotates the input: q is skew with that upper triangle, W′ = W·Rᵀ, and its config says how R is
made from q and whether COFT bounds each block. PEFT's older ``oft_r`` is not supported.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import isqrt, sqrt
from typing import TYPE_CHECKING

from lcmmerge.adapters.algebra import columns, dims, no_matrix, wide
from lcmmerge.adapters.base import Adapter, Dependent, Example, Patch, Shape
from lcmmerge.adapters.rotation import cayley_minus_identity, constrained, neumann_minus_identity

if TYPE_CHECKING:
    from torch import Tensor


def claims(roles: frozenset[str]) -> bool:
    return roles in ({"oft_blocks"}, {"oft_blocks", "rescale"}, {"oft_R"})


def rank(patch: Patch) -> None:
    return None


def fit(patch: Patch, shape: Shape) -> str:
    if problem := no_matrix(shape):
        return problem
    return _input_fit(patch, shape) if "oft_R" in patch.roles else _output_fit(patch, shape)


def _output_fit(patch: Patch, shape: Shape) -> str:
    found = patch.shape("oft_blocks")
    if len(found) != 3 or found[1] != found[2] or found[0] * found[1] != shape[0]:
        return f"oft_blocks of {dims(found)} do not tile the {shape[0]} outputs"
    return rescale_misfit(patch, shape)


def rescale_misfit(patch: Patch, shape: Shape) -> str:
    if "rescale" not in patch.roles:
        return ""
    found = patch.shape("rescale")
    fits = found[:1] == shape[:1] and columns(found) == 1
    return "" if fits else f"rescale is {dims(found)}, not {shape[0]}×1"


def _input_fit(patch: Patch, shape: Shape) -> str:
    found = patch.shape("oft_R")
    if len(found) == 2:
        size = _block_size(found[1])
        blocks, remainder = divmod(columns(shape), size)
        if size * (size - 1) // 2 == found[1] and not remainder and found[0] in (1, blocks):
            return ""
    return f"oft_R of {dims(found)} does not tile the {columns(shape)} inputs"


def _block_size(triangle: int) -> int:
    """b from b(b − 1)/2."""
    return (1 + isqrt(1 + 8 * triangle)) // 2


def update(patch: Patch, tensors: Mapping[str, Tensor], shape: Shape) -> Dependent:
    if "oft_R" in tensors:
        return _input_update(patch, wide(tensors["oft_R"]))
    blocks = wide(tensors["oft_blocks"])
    skew = constrained(blocks - blocks.mT, (patch.alpha or 0.0) * shape[0])
    turn = cayley_minus_identity(skew)

    def delta_of(weight: Tensor) -> Tensor:
        tiles = weight.reshape(*blocks.shape[:2], -1)
        return rescaled_delta((turn.mT @ tiles).reshape(shape), weight, tensors.get("rescale"))

    return Dependent(delta_of)


def rescaled_delta(delta: Tensor, weight: Tensor, rescale: Tensor | None) -> Tensor:
    """s·(W + Δ) − W."""
    if rescale is None:
        return delta
    factor = wide(rescale).reshape(-1, *[1] * (weight.dim() - 1))
    return factor * delta + (factor - 1) * weight


def _input_update(patch: Patch, triangles: Tensor) -> Dependent:
    turn = _input_turn(patch, triangles)

    def delta_of(weight: Tensor) -> Tensor:
        tiles = weight.reshape(weight.shape[0], -1, turn.shape[-1]).transpose(0, 1)  # [k, out, b]
        return (tiles @ turn.mT).transpose(0, 1).reshape(weight.shape)

    return Dependent(delta_of)


def _input_turn(patch: Patch, triangles: Tensor) -> Tensor:
    """R − I: [k, b, b]. PEFT's exact R is (I − q)(I + q)⁻¹, while its series is that of (I + q)(I − q)⁻¹."""
    import torch

    count, size = triangles.shape[0], _block_size(triangles.shape[1])
    rows, cols = torch.triu_indices(size, size, 1)
    upper = torch.zeros(count, size, size, device=triangles.device, dtype=triangles.dtype)
    upper[:, rows, cols] = triangles
    skew = upper - upper.mT
    if patch.config["coft"]:
        limit = patch.config["eps"] / sqrt(count)
        skew = skew * (limit / skew.norm(dim=(1, 2), keepdim=True).clamp(min=limit))
    if patch.config["use_cayley_neumann"]:
        return neumann_minus_identity(skew, patch.config["num_cayley_neumann_terms"])
    return cayley_minus_identity(-skew)


SETTINGS = {"coft": False, "eps": 1e-4, "use_cayley_neumann": True, "num_cayley_neumann_terms": 5}
ADAPTER = Adapter(
    "OFT", "https://arxiv.org/abs/2306.07280", claims, rank, fit, update,
    names={
        "lycoris": {"oft_blocks": "oft_blocks", "oft_diag": "oft_blocks", "rescale": "rescale"},
        "peft": {"oft_R.weight": "oft_R"},
    },
    examples=(
        Example((8, 12, 3, 3), {"oft_blocks": (4, 2, 2), "rescale": (8, 1, 1, 1)}),
        Example((8, 12), {"oft_blocks": (4, 2, 2)}),
        Example((8, 12), {"oft_R": (3, 6)}, SETTINGS),
    ),
    peft_type="OFT",
)  # fmt: skip

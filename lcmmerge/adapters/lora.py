"""ΔW = alpha/rank · up @ down; with a Tucker core ΔW[o,i,k] = alpha/rank · Σ up[o,p] mid[p,q,k] down[q,i].

Where the factors were taken out of the base before training (PiSSA, arXiv 2404.02948; OLoRA; CorDA), what it learnt is
alpha/rank · (up @ down − initial_up @ initial_down).
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
from lcmmerge.adapters.base import Adapter, Example, Factored, Patch, Shape

if TYPE_CHECKING:
    from torch import Tensor

INITIAL = ("initial_up", "initial_down")


def claims(roles: frozenset[str]) -> bool:
    return {"up", "down"} <= roles <= {"up", "down", "mid", "scalar"} or roles == {"up", "down", *INITIAL}


def rank(patch: Patch) -> int:
    return leading(patch, "down")


def fit(patch: Patch, shape: Shape) -> str:
    r = rank(patch)
    if problem := ill_shaped(patch, shape, r):
        return problem
    began = {role: patch.roles[role.removeprefix("initial_")].shape for role in INITIAL if role in patch.roles}
    if problem := next((role for role, wanted in began.items() if patch.shape(role) != wanted), ""):
        return f"{problem} is {list(patch.shape(problem))}, and trained it is {list(began[problem])}"
    if "mid" not in patch.roles:
        return misfit(patch, {"up": (shape[0], r), "down": (r, columns(shape))})
    core_rows = leading(patch, "mid")
    return core_misfit(patch, "mid", core_rows, r, shape[2:]) or misfit(
        patch, {"up": (shape[0], core_rows), "down": (r, shape[1])}
    )


def update(patch: Patch, tensors: Mapping[str, Tensor], shape: Shape) -> Factored:
    """``up``: [out, r] or [out, r, 1, 1]; ``down``: [r, in], [r, in, kh, kw]; [r, in, 1, 1] with ``mid``."""
    import torch

    up, down = flat(tensors["up"]), flat(tensors["down"])
    if "mid" in tensors:
        down = tucker_right(tensors["mid"], down)
    if "initial_up" in tensors:
        up = torch.cat([up, -flat(tensors["initial_up"])], 1)
        down = torch.cat([down, flat(tensors["initial_down"])])
    return Factored(up * scale(patch, tensors, rank(patch)), down)


ADAPTER = Adapter(
    "LoRA / LoCon", "https://arxiv.org/abs/2106.09685", claims, rank, fit, update,
    names={
        "kohya": {"lora_up.weight": "up", "lora_down.weight": "down", "lora_mid.weight": "mid"},
        "diffusers": {
            "lora.up.weight": "up", "lora.down.weight": "down",
            "lora_linear_layer.up.weight": "up", "lora_linear_layer.down.weight": "down",
        },
        "peft": {"lora_A.weight": "down", "lora_B.weight": "up"},
    },
    examples=(
        Example((8, 12), {"up": (8, 3), "down": (3, 12)}),
        Example((8, 12, 3, 3), {"up": (8, 3, 1, 1), "down": (3, 12, 3, 3), "scalar": ()}),
        Example((8, 12, 3, 3), {"up": (8, 3, 1, 1), "mid": (3, 3, 3, 3), "down": (3, 12, 1, 1)}),
    ),
    together=(("up", "down"),),
    peft_type="LORA",
)  # fmt: skip

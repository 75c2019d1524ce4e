"""Δb = alpha/rank · b_up: the bias of PEFT's ``lora_B`` (``LoraConfig(lora_bias=True)``)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from lcmmerge.adapters.algebra import dims, leading, scale, wide
from lcmmerge.adapters.base import Adapter, Dense, Example, Patch, Shape

if TYPE_CHECKING:
    from torch import Tensor


def claims(roles: frozenset[str]) -> bool:
    return roles == {"up_bias", "down"}


def rank(patch: Patch) -> int:
    return leading(patch, "down")


def fit(patch: Patch, shape: Shape) -> str:
    if rank(patch) < 1:
        return "its rank is 0"
    found = patch.shape("up_bias")
    return "" if found == shape else f"up_bias is {dims(found)}, not {dims(shape)}"


def update(patch: Patch, tensors: Mapping[str, Tensor], shape: Shape) -> Dense:
    """``up_bias``: [out]; ``down`` only tells the rank."""
    return Dense(wide(tensors["up_bias"]) * scale(patch, tensors, rank(patch)))


ADAPTER = Adapter(
    "LoRA bias", "https://huggingface.co/docs/peft/package_reference/lora", claims, rank, fit, update,
    names={"peft": {"lora_B.bias": "up_bias"}},
    examples=(Example((8,), {"up_bias": (8,), "down": (3, 12)}),),
    peft_type="LORA",
)  # fmt: skip

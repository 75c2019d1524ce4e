"""θ_pre + Σ λ τ over the shipped files, and how long and how slanted the task vectors are.

Plain and small, since hundreds of cells are drawn; that ``lcmmerge fuse`` writes the same weights is a test.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file
from torch import Tensor

PREFIX = "lora_unet_"

Vector = dict[str, Tensor]
"""A task vector τ: ΔW by the U-Net's module."""


def task_vector(path: Path, unet: UNet2DConditionModel) -> Vector:
    """alpha / r · up @ down for each module of a LoRA file in the official LCM-LoRA's grammar."""
    stored = load_file(path)
    vector = {}
    for name, module in unet.named_modules():
        key = PREFIX + name.replace(".", "_")
        if f"{key}.alpha" in stored:
            up, down = (stored[f"{key}.lora_{side}.weight"].float() for side in ("up", "down"))
            scale = float(stored[f"{key}.alpha"]) / len(down)
            vector[name] = scale * (up.flatten(1) @ down.flatten(1)).reshape_as(module.weight)
    return vector


def merged(
    unet: UNet2DConditionModel, terms: Mapping[str, float], vectors: Mapping[str, Vector]
) -> UNet2DConditionModel:
    """θ_pre + Σ λ τ; ``terms``: λ by the vector's name."""
    result = copy.deepcopy(unet)
    modules = dict(result.named_modules())
    with torch.no_grad():
        for name, strength in terms.items():
            for module, change in vectors[name].items():
                modules[module].weight += strength * change
    return result


def norms(unet: UNet2DConditionModel, vector: Vector) -> Tensor:
    """‖τ‖ / ‖W‖ of each module."""
    modules = dict(unet.named_modules())
    return torch.stack([change.norm() / modules[name].weight.norm() for name, change in vector.items()])


def cosines(one: Vector, other: Vector) -> Tensor:
    """Between two task vectors, module by module."""
    return torch.stack([torch.cosine_similarity(one[name].flatten(), other[name].flatten(), 0) for name in one])

"""The modules that LCM-LoRA trains, and how many parameters that makes.

Paper: https://arxiv.org/abs/2311.05556, table of trainable parameters.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

from lcmmerge.archs.views import Shape

TARGETS = (
    "to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2", "conv1", "conv2",
    "conv_shortcut", "downsamplers.0.conv", "upsamplers.0.conv", "time_emb_proj",
)  # fmt: skip


def lora_targets(shapes: Mapping[str, Shape]) -> dict[str, Shape]:
    """The U-Net's modules that LCM-LoRA trains → their weights' shapes; ``shapes`` by canonical parameter."""
    endings = tuple(f".{target}.weight" for target in TARGETS)
    return {
        name.removesuffix(".weight"): shape
        for name, shape in shapes.items()
        if name.startswith("unet.") and name.endswith(endings)
    }


def lora_parameters(shapes: Mapping[str, Shape], rank: int) -> int:
    """Trainable parameters of a LoRA of all targets: down [r, in, kh, kw] and up [out, r] for each module."""
    return sum(rank * (prod(shape[1:]) + shape[0]) for shape in lora_targets(shapes).values())

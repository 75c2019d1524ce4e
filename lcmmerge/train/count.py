"""The paper's table of trainable parameters, for any base and rank. Headers only, and no torch.

Table 1 of https://arxiv.org/abs/2311.05556: 67.5 M for SD-V1.5, 105 M for SSD-1B, 197 M for SDXL, at rank 64.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

from lcmmerge.archs import Model, lora_parameters, lora_targets
from lcmmerge.archs.targets import TARGETS


@dataclass(frozen=True, slots=True)
class Count:
    """How many parameters a training has.

    ``unet``: all of its parameters; ``modules`` and ``parameters`` of the LoRA, in all and for each target.
    """

    architecture: str
    rank: int
    unet: int
    modules: int
    parameters: int
    targets: Mapping[str, tuple[int, int]]

    def as_dict(self) -> dict[str, Any]:
        targets = {name: {"modules": modules, "parameters": n} for name, (modules, n) in self.targets.items()}
        return {
            "architecture": self.architecture,
            "rank": self.rank,
            "unet_parameters": self.unet,
            "modules": self.modules,
            "trainable_parameters": self.parameters,
            "targets": targets,
        }


def count(model: Model, rank: int) -> Count:
    """What a LoRA of all of LCM-LoRA's targets has to train."""
    shapes, denoiser = model.shapes, f"{model.arch.denoiser.name}."
    unet = sum(prod(shape) for name, shape in shapes.items() if name.startswith(denoiser))
    modules: Counter[str] = Counter()
    parameters: Counter[str] = Counter()
    for module, shape in lora_targets(shapes).items():
        target = next(target for target in TARGETS if module.endswith(f".{target}"))
        modules[target] += 1
        parameters[target] += lora_parameters({f"{module}.weight": shape}, rank)
    targets = {target: (modules[target], parameters[target]) for target in TARGETS if modules[target]}
    return Count(model.arch.title, rank, unet, modules.total(), parameters.total(), targets)

"""How to optimise, as plain data."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from lcmmerge.errors import LcmMergeError

OF_THE_RUN = ("steps", "checkpoint_every", "validate_every", "keep", "gradient_checkpointing")


@dataclass(frozen=True, slots=True)
class TrainingSettings:
    """The settings of an optimisation.

    ``batch_size`` is one process's, for each of ``accumulate`` passes; ``warmup`` in steps; ``precision`` is
    accelerate's ``mixed_precision``; ``keep``: how many checkpoints beside the best. ``validate_every`` 0: never.
    """

    steps: int = 1000
    batch_size: int = 12
    accumulate: int = 1
    learning_rate: float = 1e-4
    warmup: int = 0
    decay: str = "constant"
    weight_decay: float = 1e-2
    max_grad_norm: float = 1.0
    optimizer: str = "adamw"
    precision: str = "no"
    gradient_checkpointing: bool = False
    checkpoint_every: int = 500
    validate_every: int = 500
    keep: int = 1
    seed: int = 0

    def rate(self, step: int) -> float:
        """The learning rate of the step, counted from 0."""
        rate = self.learning_rate * min(1.0, (step + 1) / (self.warmup + 1))
        if self.decay == "cosine":
            rate *= 0.5 * (1 + math.cos(math.pi * step / self.steps))
        return rate

    def identity(self) -> dict[str, Any]:
        """What the numbers depend on. A run of a constant rate may be made longer; one whose rate decays may not."""
        left_out = [key for key in OF_THE_RUN if key != "steps" or self.decay == "constant"]
        return {key: value for key, value in asdict(self).items() if key not in left_out}

    def make_optimizer(self, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        """Raises LcmMergeError where 8-bit states are asked for and bitsandbytes is not installed."""
        arguments: dict[str, Any] = {"lr": self.learning_rate, "weight_decay": self.weight_decay}
        if self.optimizer == "adamw":
            return torch.optim.AdamW(parameters, **arguments)
        try:
            from bitsandbytes.optim import AdamW8bit
        except ImportError:
            raise LcmMergeError(
                "8-bit AdamW needs bitsandbytes, which is not installed", "pip install bitsandbytes, or take adamw"
            ) from None
        eight_bit: torch.optim.Optimizer = AdamW8bit(parameters, **arguments)
        return eight_bit

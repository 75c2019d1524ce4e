"""What is minimised: one file each."""

from __future__ import annotations

from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from lcmmerge.train.batch import Batch
from lcmmerge.train.networks import Networks


class TrainingObjective(Protocol):
    """What a training minimises.

    ``teaches``: whether it asks the teacher, ``trails``: whether it asks the target network.
    """

    teaches: ClassVar[bool]
    trails: ClassVar[bool]

    def loss(self, networks: Networks, batch: Batch, draw: torch.Generator) -> Tensor:
        """A scalar, differentiable in the student's parameters; every random number comes from ``draw`` (CPU)."""
        ...

    def as_dict(self) -> dict[str, Any]:
        """Its settings, JSON-ready."""
        ...


def normal_like(tensor: Tensor, draw: torch.Generator) -> Tensor:
    """ε ~ N(0, 1): drawn on the CPU, so that every device sees the same."""
    return torch.randn(tensor.shape, generator=draw).to(tensor.device)


def uniform(low: float, high: float, batch: int, draw: torch.Generator, device: torch.device) -> Tensor:
    """[batch] numbers."""
    return (low + (high - low) * torch.rand(batch, generator=draw)).to(device)

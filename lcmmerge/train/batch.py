"""What one optimisation step reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Conditioning:
    """What a U-Net is told beside the latents: ``hidden`` [B, tokens, width]; SDXL also ``pooled`` [B, p] and
    ``time_ids`` [B, 6]: original height and width, crop's top and left, target height and width, in pixels
    (https://arxiv.org/abs/2307.01952, section 2.2).
    """

    hidden: Tensor
    pooled: Tensor | None = None
    time_ids: Tensor | None = None

    def arguments(self) -> dict[str, Any]:
        """As diffusers' UNet2DConditionModel takes them."""
        added = {} if self.pooled is None else {"text_embeds": self.pooled, "time_ids": self.time_ids}
        return {"encoder_hidden_states": self.hidden, "added_cond_kwargs": added or None}

    def where(self, chosen: Tensor, other: Conditioning) -> Conditioning:
        """This one's rows where ``chosen`` [B] is true, else ``other``'s text; sizes stay this one's."""
        hidden = torch.where(chosen[:, None, None], self.hidden, other.hidden)
        if self.pooled is None or other.pooled is None:
            return Conditioning(hidden)
        return Conditioning(hidden, torch.where(chosen[:, None], self.pooled, other.pooled), self.time_ids)

    def to(self, device: torch.device) -> Conditioning:
        moved = (None if part is None else part.to(device) for part in (self.pooled, self.time_ids))
        return Conditioning(self.hidden.to(device), *moved)

    def joined(self, other: Conditioning) -> Conditioning:
        """This batch and then the other, [2B, …], for one pass through the network."""
        hidden = torch.cat([self.hidden, other.hidden])
        if self.pooled is None or other.pooled is None or self.time_ids is None or other.time_ids is None:
            return Conditioning(hidden)
        return Conditioning(
            hidden, torch.cat([self.pooled, other.pooled]), torch.cat([self.time_ids, other.time_ids])
        )


@dataclass(frozen=True, slots=True)
class Batch:
    """Examples as the objective gets them.

    ``latents`` [B, C, h, w], multiplied by the VAE's scaling factor; ``prompt`` c and ``blank`` ∅, of B rows.
    """

    latents: Tensor
    prompt: Conditioning
    blank: Conditioning

    def to(self, device: torch.device) -> Batch:
        return Batch(self.latents.to(device), self.prompt.to(device), self.blank.to(device))

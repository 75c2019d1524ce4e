"""What tests of training share: a batch for a pico's U-Net, and a watch that remembers."""

from __future__ import annotations

import torch
from pico import pico

from lcmmerge.train.batch import Batch, Conditioning
from lcmmerge.train.checkpoint import Best
from lcmmerge.train.trainer import Stepped


class Recording:
    """``scores``: step → score."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.scores: dict[int, float] = {}
        self.saves: list[int] = []

    def stepped(self, stepped: Stepped) -> None:
        self.losses.append(stepped.loss)

    def validated(self, step: int, score: float, best: Best) -> None:
        self.scores[step] = score

    def saved(self, step: int) -> None:
        self.saves.append(step)


def batch_of(name: str, size: int = 3, seed: int = 11) -> Batch:
    """Random latents of 64 px and random texts."""
    config = pico(name).pipeline.unet.config
    draw = torch.Generator().manual_seed(seed)

    def conditioning() -> Conditioning:
        hidden = torch.randn(size, 7, config.cross_attention_dim, generator=draw)
        if config.addition_embed_type is None:
            return Conditioning(hidden)
        pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        sizes = torch.tensor([[64.0, 64, 0, 0, 64, 64]]).repeat(size, 1)
        return Conditioning(hidden, torch.randn(size, pooled, generator=draw), sizes)

    return Batch(torch.randn(size, 4, 8, 8, generator=draw), conditioning(), conditioning())

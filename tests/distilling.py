"""Trainings of picos that end in seconds, trained networks, and what is said of their products."""

from __future__ import annotations

from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import torch
from pico import pico, short_unet

from lcmmerge.archs import identify
from lcmmerge.tensors import open_source
from lcmmerge.train.card import TrainingOrigin
from lcmmerge.train.job import TrainingJob
from lcmmerge.train.networks import LoraNetworks
from lcmmerge.train.noise import Noise
from lcmmerge.train.settings import TrainingSettings

FAST = ("--resolution", 64, "--batch", 2, "--rank", 2, "--device", "cpu", "--workers", 0)


def job(base: Path, data: Path, output: Path, steps: int = 2, **fields: Any) -> TrainingJob:
    settings = TrainingSettings(steps=steps, batch_size=2, **fields.pop("settings", {}))
    given = {"rank": 2, "resolution": 64, "device": "cpu", **fields}
    return TrainingJob(str(base), str(data), output, settings=settings, **given)


def networks(name: str, rank: int = 3, alpha: float = 2.0, *, short: bool = False) -> LoraNetworks:
    """A pico's U-Net, or its ``short_unet``, with a LoRA that has learnt noise."""
    pipeline = pico(name).pipeline
    unet = short_unet(name) if short else deepcopy(pipeline.unet)
    found = LoraNetworks(unet, Noise.of(pipeline.scheduler.config), rank, alpha, seed=0)
    generator = torch.Generator().manual_seed(7)
    for parameter in found.trained().values():
        parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)
    return found


@cache
def trained(name: str) -> LoraNetworks:
    """Of rank 3 and alpha 2, and shared: to be left as they are."""
    return networks(name)


def origin(name: str, folder: Path, kind: str = "lcd") -> TrainingOrigin:
    """What a run would say of a product of the pico's diffusers folder."""
    asked = TrainingJob(str(folder), "data", Path("out"), kind=kind)
    base = identify(open_source(folder))
    facts = {"objective": asked.objective(base.arch, 1000).as_dict(), "data": {"name": "squares"}, "step": 4}
    return TrainingOrigin(asked.command, base, "", "0" * 64, facts, asked.sampling(base, 50, guided=False))

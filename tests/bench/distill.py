"""Steps per second and peak memory of distillation at Stable Diffusion 1.5's size, on random weights, on a GPU.

``python tests/bench/distill.py``. Each case is a process of its own, so that its peak is its own.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import replace
from itertools import repeat
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from accelerate import Accelerator
from diffusers import UNet2DConditionModel

from lcmmerge.train.batch import Batch, Conditioning
from lcmmerge.train.checkpoint import Best
from lcmmerge.train.networks import FullNetworks, LoraNetworks
from lcmmerge.train.noise import Noise
from lcmmerge.train.objectives.lcd import LatentConsistencyDistillation
from lcmmerge.train.settings import TrainingSettings
from lcmmerge.train.trainer import Stepped, Trainer

CASES = ("lora", "lora-checkpointing", "full")
# Stable Diffusion 1.5's U-Net, and what it is told: diffusers' defaults but for these.
SD15 = {"cross_attention_dim": 768, "sample_size": 64, "attention_head_dim": 8}
SCHEDULER = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
WARM = 3  # steps that are not counted


class Clock:
    def __init__(self) -> None:
        self.seconds: list[float] = []

    def stepped(self, stepped: Stepped) -> None:
        self.seconds.append(stepped.seconds)

    def validated(self, step: int, score: float, best: Best) -> None: ...

    def saved(self, step: int) -> None: ...


def measure(case: str, device: str, steps: int, batch: int) -> dict[str, float]:
    torch.manual_seed(0)
    unet, noise = UNet2DConditionModel(**SD15), Noise.of(SCHEDULER)
    precision = "bf16" if device == "cuda" else "no"
    if case == "full":
        networks = FullNetworks(unet, noise, guided=True, taught=True, mu=0.95)
    else:
        networks = LoraNetworks(unet.to(torch.bfloat16 if device == "cuda" else torch.float32), noise, 64, 64.0, seed=0)
    settings = TrainingSettings(steps + WARM, batch, precision=precision, checkpoint_every=0, validate_every=0)
    settings = replace(settings, gradient_checkpointing=case == "lora-checkpointing")
    told = Conditioning(torch.randn(batch, 77, 768))
    data = Batch(torch.randn(batch, 4, 64, 64), told, told)
    clock = Clock()
    with TemporaryDirectory() as folder:
        accelerator = Accelerator(cpu=device == "cpu", mixed_precision=precision)
        objective = LatentConsistencyDistillation()
        feed = lambda first, process, processes: repeat(data)  # noqa: E731
        Trainer(networks, objective, feed, settings, Path(folder), clock, {}, accelerator).train()
    counted = clock.seconds[WARM:]
    peak = torch.cuda.max_memory_allocated() if device == "cuda" else 0
    return {"steps_per_second": len(counted) / sum(counted), "peak_gb": peak / 1e9}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch", type=int, default=12)
    parser.add_argument("--case", choices=CASES)
    asked = parser.parse_args()
    if asked.device == "cuda" and not torch.cuda.is_available():
        sys.exit("no GPU here: nothing was measured")
    if asked.case:
        sys.stdout.write(json.dumps(measure(asked.case, asked.device, asked.steps, asked.batch)) + "\n")
        return
    for case in CASES:
        command = [sys.executable, __file__, "--case", case, *sys.argv[1:]]
        found = subprocess.run(command, capture_output=True, text=True, check=False)
        sys.stdout.write(f"{case}: {found.stdout.strip() or found.stderr.strip().splitlines()[-1]}\n")


if __name__ == "__main__":
    main()

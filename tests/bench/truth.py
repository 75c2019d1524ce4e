"""The ground truth of a grid of λ on the embedded model: ``PYTHONPATH=tests python tests/bench/truth.py truth.json``.

A search tries to come near the style model's many-step pictures. How near a cell truly comes is measured with many
pictures of other noise, in the features of the judge (lcmmerge/zoo/digits), which a search never sees. Beside it
stands what a search cannot know: the distance to real pictures, as in the claim. All cells are drawn from the same
noise, so that differences between cells are known better than the cells.
"""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path
from typing import Any

import click
import torch
from embedded.claim import GUIDANCE, REAL_SEED, REFERENCES
from embedded.folder import SHIPPED, Folder, prompts
from embedded.judge import LOOKS, energy_distance, judged
from embedded.merging import merged, task_vector
from embedded.sampling import Method, sample
from embedded.scenes import STYLES, draw
from embedded.vae import decoded
from torch import Tensor

GRID = {"style": (0.4, 0.6, 0.8, 1.0, 1.2), "lcm": (0.4, 0.7, 1.0, 1.3)}
FEW, MANY = Method("LCM", 4), Method("DPM-Solver++", 25, GUIDANCE)
SEED, TEACHER_SEED = 3_000_000, 4_000_000  # the claim's are 1_000_000 and 2_000_000
RESAMPLES = 1000


def resampled(ours: Tensor, theirs: Tensor, weights: Tensor) -> Tensor:
    """The energy distance of each resample of ``ours`` [n, d], but for what ``theirs`` adds; ``weights`` [B, n]."""
    across, within = torch.cdist(ours, theirs).mean(1), torch.cdist(ours, ours)
    pairs = len(ours) ** 2 - weights.square().sum(1)
    return 2 * weights @ across / len(ours) - ((weights @ within) * weights).sum(1) / pairs


def truth(style: str, count: int) -> list[dict[str, Any]]:
    """``distance``: to the style model; ``behind``: the 95 % interval of how much farther a cell is than the nearest,
    which holds 0 for what ties with it. ``real``: the distance to real pictures; ``accuracy``: right digit and style.
    """
    folder = Folder(SHIPPED)
    unet, vae, judge = folder.load_unet(), folder.load_vae(), folder.load_judge()
    vectors = {name: task_vector(folder.lora(name), unet) for name in (style, "lcm")}
    look, digits = list(LOOKS).index(style), torch.arange(count) % 10
    real = judged(judge, draw(LOOKS[style], REFERENCES, REAL_SEED + look, held_out=True)[0]).features

    def drawn(terms: dict[str, float], method: Method, seed: int) -> Any:
        latents = sample(merged(unet, terms, vectors), prompts(), digits, method, seed)
        return judged(judge, decoded(vae, latents))

    teacher = drawn({style: 1.0}, MANY, TEACHER_SEED).features
    picked = torch.randint(count, (RESAMPLES, count), generator=torch.Generator().manual_seed(0))
    weights = torch.zeros(RESAMPLES, count).scatter_add_(1, picked, torch.ones(picked.shape))
    cells, distances = [], []
    for strengths in product(*GRID.values()):
        verdict = drawn(dict(zip((style, "lcm"), strengths, strict=True)), FEW, SEED)
        right = (verdict.digits == digits) & (verdict.looks == look)
        found = {
            "distance": energy_distance(verdict.features, teacher)[0],
            "real": energy_distance(verdict.features, real)[0],
            "accuracy": float(right.float().mean()),
        }
        cells.append({"lambda": strengths} | {name: round(value, 4) for name, value in found.items()})
        distances.append(resampled(verdict.features, teacher, weights))
        click.echo(cells[-1], err=True)
    best = min(range(len(cells)), key=lambda number: cells[number]["distance"])
    for cell, ours in zip(cells, distances, strict=True):
        interval = (ours - distances[best]).quantile(torch.tensor([0.025, 0.975])).tolist()
        cell["behind"] = [round(bound, 4) for bound in interval]
    return cells


@click.command(help="Measure the grid of a style, and write it to TARGET.")
@click.argument("target", type=click.Path(path_type=Path))
@click.option("--style", type=click.Choice(list(STYLES)), default="paper", show_default=True)
@click.option("--count", default=300, show_default=True, help="Pictures a cell, and of the style model.")
def main(target: Path, style: str, count: int) -> None:
    cells = ",\n".join(f"  {json.dumps(cell)}" for cell in truth(style, count))
    target.write_text(f'{{\n "style": "{style}",\n "pictures": {count},\n "cells": [\n{cells}\n ]\n}}\n')


if __name__ == "__main__":
    main()

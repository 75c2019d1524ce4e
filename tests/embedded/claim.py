"""The paper's claim, measured on the shipped files: few-step drawing with τ_LCM against solvers, at equal cost.

λ is searched on seeds of its own; every number of the tables comes from seeds that the search has not seen.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor

from embedded.judge import LOOKS, Judge, Verdict, energy_distance, judged, proportion
from embedded.merging import Vector, cosines, merged, norms
from embedded.sampling import Method, sample
from embedded.scenes import STYLES, draw
from embedded.vae import decoded, encoded

COUNT, SEARCHED, REFERENCES = 512, 200, 1500
SEARCH_SEED, TEST_SEED, REAL_SEED = 1_000_000, 2_000_000, 300_000
GUIDANCE = 2.5
SOLVERS = ("DDIM", "DPM-Solver", "DPM-Solver++")
BUDGETS, STYLE_BUDGETS = (1, 2, 4, 8), (1, 2, 4)  # network evaluations
STYLE_GRID = (0.4, 0.6, 0.8, 1.0, 1.2)
LCM_GRID = (0.0, 0.4, 0.6, 0.8, 1.0, 1.2)
TEACHER = Method("DDIM", 50, GUIDANCE)

Estimate = tuple[float, float, float]
"""A value and its 95 % interval."""


@dataclass(frozen=True, slots=True)
class Cell:
    """``accuracy``: right digit and, of a style, right look; ``features``, ``pixels``: energy distances."""

    model: str
    method: Method | None
    evaluations: int
    accuracy: Estimate
    features: Estimate
    pixels: Estimate


@dataclass(frozen=True, slots=True)
class Bench:
    """What draws and judges. ``prompts`` [11, tokens, hidden]; ``vectors``: the styles' and ``lcm``'s."""

    unet: UNet2DConditionModel
    vae: AutoencoderKL
    prompts: Tensor
    judge: Judge
    vectors: Mapping[str, Vector]
    real: Mapping[str, Verdict]

    def cell(self, name: str, terms: Mapping[str, float], method: Method, look: str, count: int, seed: int) -> Cell:
        digits = torch.arange(count) % 10
        unet = merged(self.unet, terms, self.vectors)
        pictures = decoded(self.vae, sample(unet, self.prompts, digits, method, seed))
        return self._scored(name, method, judged(self.judge, pictures), digits, look)

    def floors(self, look: str) -> Iterator[Cell]:
        """Other real pictures, as they are and through the autoencoder: nothing that draws can be expected nearer."""
        pictures, digits = draw(LOOKS[look], COUNT, REAL_SEED - 1, held_out=True)
        yield self._scored("real pictures", None, judged(self.judge, pictures), digits, look)
        passed = decoded(self.vae, encoded(self.vae, pictures) * self.vae.config["scaling_factor"])
        yield self._scored("real pictures through the VAE", None, judged(self.judge, passed), digits, look)

    def _scored(self, name: str, method: Method | None, verdict: Verdict, digits: Tensor, look: str) -> Cell:
        hits = (verdict.digits == digits) & ((verdict.looks == list(LOOKS).index(look)) | (look not in STYLES))
        real = self.real[look]
        distances = [energy_distance(getattr(verdict, kind), getattr(real, kind)) for kind in ("features", "pixels")]
        return Cell(name, method, method.evaluations if method else 0, proportion(hits), *distances)


def references(judge: Judge) -> dict[str, Verdict]:
    """Real pictures of every look, of handwritten digits that nothing was trained on."""
    return {
        name: judged(judge, draw(look, REFERENCES, REAL_SEED + index, held_out=True)[0])
        for index, (name, look) in enumerate(LOOKS.items())
    }


def solvers(budgets: tuple[int, ...]) -> Iterator[Method]:
    """Every solver with and, at an even budget, without... guidance: which is better is not known before."""
    for solver, budget in product(SOLVERS, budgets):
        yield Method(solver, budget)
        if budget % 2 == 0:
            yield Method(solver, budget // 2, GUIDANCE)


def search(bench: Bench, style: str) -> list[tuple[float, float, Cell]]:
    """The grid (λ1, λ2) at four evaluations."""
    return [
        (one, two, bench.cell("grid", {style: one, "lcm": two}, Method("LCM", 4), style, SEARCHED, SEARCH_SEED))
        for one, two in product(STYLE_GRID, LCM_GRID)
    ]


def base_table(bench: Bench) -> Iterator[Cell]:
    """τ_LCM alone."""
    look = "everything"
    yield from bench.floors(look)
    yield bench.cell("base", {}, TEACHER, look, COUNT, TEST_SEED)
    for budget in BUDGETS:
        yield bench.cell("base + τ_LCM", {"lcm": 1.0}, Method("LCM", budget), look, COUNT, TEST_SEED)
        yield bench.cell("base", {}, Method("LCM", budget), look, COUNT, TEST_SEED)
    for method in solvers(BUDGETS):
        yield bench.cell("base", {}, method, look, COUNT, TEST_SEED)


def style_table(bench: Bench, style: str, terms: Mapping[str, float]) -> Iterator[Cell]:
    """The merge at the λ found, each vector alone, the solvers of the style's model."""
    yield from bench.floors(style)
    yield bench.cell("style", {style: 1.0}, TEACHER, style, COUNT, TEST_SEED)
    for budget in STYLE_BUDGETS:
        method = Method("LCM", budget)
        yield bench.cell("merge", terms, method, style, COUNT, TEST_SEED)
        yield bench.cell("merge at (1, 1)", {style: 1.0, "lcm": 1.0}, method, style, COUNT, TEST_SEED)
        yield bench.cell("τ_LCM alone", {"lcm": 1.0}, method, style, COUNT, TEST_SEED)
        yield bench.cell("τ′ alone", {style: 1.0}, method, style, COUNT, TEST_SEED)
    for method in solvers(STYLE_BUDGETS):
        yield bench.cell("style", {style: 1.0}, method, style, COUNT, TEST_SEED)


def geometry(bench: Bench, style: str) -> dict[str, float]:
    """Median ‖τ‖/‖W‖ over the modules, and cos(τ′, τ_LCM): its mean and greatest."""
    one, two = bench.vectors[style], bench.vectors["lcm"]
    angles = cosines(one, two)
    return {
        "style_norm": float(norms(bench.unet, one).median()),
        "lcm_norm": float(norms(bench.unet, two).median()),
        "cosine_mean": float(angles.mean()),
        "cosine_greatest": float(angles.abs().max()),
    }

"""What an objective is: figures of a cell's samples against the teacher's, drawn from the same prompts and seeds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from lcmmerge.search.statistics import Statistic


@dataclass(frozen=True, slots=True)
class Samples:
    """``latents``: [n, C, h, w] float32, as the VAE gets them before its scaling; ``prompts``: n texts."""

    latents: Tensor
    prompts: tuple[str, ...]


Measure = Callable[[Samples, Samples], Mapping[str, Statistic]]  # (a cell's, the teacher's) → its figures by name


@dataclass(frozen=True, slots=True)
class Objective:
    """The mean of its figures, each z-scored over a study's cells; ``maximise`` where higher is better.

    ``cost``: in words, what it takes beside the samples. ``source``: where its equation is from. ``paired``: figures
    of samples that share their noise, for which two draws of the teacher give no floor.
    """

    title: str
    measure: Measure
    cost: str
    source: str
    maximise: bool = False
    paired: frozenset[str] = frozenset()

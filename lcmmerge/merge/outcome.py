"""How to execute a plan, and what is measured on the way: plain data, so that neither needs torch."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from math import inf, sqrt

MOST_WORKERS = 256


@dataclass(frozen=True, slots=True)
class Settings:
    """How a merge is computed; the bytes do not depend on it.

    ``threads``: workers (0: one per core, four at most); ``device``: where the arithmetic is done.

    ``hash_base``: record the base's sha256 too. Where nobody knows it yet, that costs about a third of a merge.
    ``keep_inputs``: leave what is read in the page cache, since a merge of the same files follows.
    """

    threads: int = 0
    device: str = "cpu"
    hash_base: bool = True
    keep_inputs: bool = False

    @property
    def workers(self) -> int:
        return self.threads or min(os.cpu_count() or 1, 4)


@dataclass(slots=True)
class Measured:
    """What one block shows: ‖θ‖², the terms' ‖λΔ‖² where only the block tells, and the rounding error of a sample."""

    base_square: float = 0.0
    squares: dict[int, float] = field(default_factory=dict)
    sampled: int = 0
    sampled_error: float = 0.0


@dataclass(slots=True)
class Layer:
    """What was measured of one parameter: ‖θ‖², ‖λΔ‖² per term, and ‖round(θ′) − θ′‖² on a sample of its elements."""

    name: str
    numel: int
    squares: dict[int, float]
    base_square: float = 0.0
    sampled: int = 0
    sampled_error: float = 0.0

    @property
    def error_square(self) -> float:
        """‖round(θ′) − θ′‖², extrapolated from the sample."""
        return self.sampled_error * self.numel / self.sampled if self.sampled else 0.0

    @property
    def relative(self) -> float:
        """‖Σ λΔ‖ / ‖θ‖, the terms taken as orthogonal."""
        return sqrt(sum(self.squares.values()) / self.base_square) if self.base_square else inf

    @property
    def signal(self) -> float:
        """‖Σ λΔ‖ / ‖rounding error‖."""
        return sqrt(sum(self.squares.values()) / self.error_square) if self.error_square else inf

    def add(self, measured: Measured) -> None:
        self.base_square += measured.base_square
        for term, square in measured.squares.items():
            self.squares[term] = self.squares.get(term, 0.0) + square
        self.sampled += measured.sampled
        self.sampled_error += measured.sampled_error


@dataclass(frozen=True, slots=True)
class Outcome:
    """What was written and measured.

    ``layers``: one per parameter; ``sha256``: of each file's tensor bytes, or of it whole; in the plan's order.
    """

    layers: tuple[Layer, ...]
    sha256: tuple[str, ...]

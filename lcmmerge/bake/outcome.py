"""How to execute a plan, and what is measured on the way: plain data, so that neither needs torch."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from math import inf, nan, sqrt

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
    """What one block shows: ‖θ‖², the terms' ‖λΔ‖² where only the block tells, and of a sample what rounding made.

    ``change``: ‖θ′ − θ‖²; ``made``: ‖round(θ′) − θ‖²; ``kept``: the inner product of the two; ``error``: ‖round(θ′) −
    θ′‖², and ``nearest_error`` what that would be rounded to nearest, where it is error-aware. ``terms``: term → ‖λΔ‖²,
    and the inner product of λΔ with that error.
    """

    base_square: float = 0.0
    squares: dict[int, float] = field(default_factory=dict)
    sampled: int = 0
    error: float = 0.0
    nearest_error: float = 0.0
    change: float = 0.0
    made: float = 0.0
    kept: float = 0.0
    terms: dict[int, tuple[float, float]] = field(default_factory=dict)

    def add(self, other: Measured) -> None:
        for name in ("base_square", "sampled", "error", "nearest_error", "change", "made", "kept"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for term, square in other.squares.items():
            self.squares[term] = self.squares.get(term, 0.0) + square
        for term, (square, lost) in other.terms.items():
            before = self.terms.get(term, (0.0, 0.0))
            self.terms[term] = before[0] + square, before[1] + lost

    @property
    def gain(self) -> float:
        """How much of θ′ − θ is in the output: the projection on it of what the output changed. NaN where it is 0."""
        return self.kept / self.change if self.change else nan

    @property
    def correlation(self) -> float:
        """Of θ′ − θ with what the output changed: 1 where nothing was lost to rounding. NaN where nothing changed."""
        lengths = sqrt(self.change * self.made)
        return self.kept / lengths if lengths else nan

    @property
    def gained(self) -> float:
        """By how much error-aware rounding made ‖round(θ′) − θ′‖ smaller: 0.1 is a tenth. NaN without it."""
        return 1 - sqrt(self.error / self.nearest_error) if self.nearest_error else nan

    def share(self, term: int) -> float:
        """How much of a term's λΔ is in the output, as ``gain`` is of their sum. NaN where that was not looked at."""
        square, lost = self.terms.get(term, (0.0, 0.0))
        return 1 + lost / square if square else nan


@dataclass(slots=True)
class Layer:
    """One parameter, and the sum of what its blocks have ``measured``."""

    name: str
    numel: int
    measured: Measured = field(default_factory=Measured)

    @property
    def squares(self) -> dict[int, float]:
        """‖λΔ‖² per term."""
        return self.measured.squares

    @property
    def error_square(self) -> float:
        """‖round(θ′) − θ′‖², extrapolated from the sample."""
        return self.measured.error * self.numel / self.measured.sampled if self.measured.sampled else 0.0

    @property
    def relative(self) -> float:
        """‖Σ λΔ‖ / ‖θ‖, the terms taken as orthogonal."""
        return sqrt(sum(self.squares.values()) / self.measured.base_square) if self.measured.base_square else inf

    @property
    def signal(self) -> float:
        """‖Σ λΔ‖ / ‖rounding error‖."""
        return sqrt(sum(self.squares.values()) / self.error_square) if self.error_square else inf


@dataclass(frozen=True, slots=True)
class Outcome:
    """What was written and measured.

    ``layers``: one per parameter; ``sha256``: of each file's tensor bytes, or of it whole; in the plan's order.
    """

    layers: tuple[Layer, ...]
    sha256: tuple[str, ...]

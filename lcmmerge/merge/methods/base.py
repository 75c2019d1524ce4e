"""What a merge method is: from a weight, the terms' changes of it and their λs to the merged weight.

Notation: W and each Δ are some rows of one parameter as a matrix, [rows, columns], float32 (float64 for a parameter in
float64), on one device. Δᵢ is what a term changes at λ = 1. A term whose λ is 0 takes no part, and is not among them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

Parameters = Mapping[str, float]
Combine = Callable[["Tensor", Sequence["Tensor"], Sequence[float], Parameters], "Tensor"]
Keep = Callable[["Tensor", Parameters], "Tensor | None"]


@dataclass(frozen=True, slots=True)
class MethodParameter:
    """A number that a method is given by name, within ``low`` … ``high``. ``help``: one phrase."""

    default: float
    low: float
    high: float
    help: str


@dataclass(frozen=True, slots=True)
class Method:
    """One way to merge. ``source``: where its equation is from.

    ``combine(W, [Δ₁, …], [λ₁, …], parameters)`` → W′, for some rows at a time; it may overwrite the tensors. None is
    W + Σ λᵢΔᵢ, which alone is linear in each λ whatever the other terms are: then LoRAs are added without forming
    their Δ, and a search draws every cell from one model in memory.

    ``keep(Δ, parameters)``: which of a term's numbers take part, as booleans of Δ's shape, or None for all. It is given
    the Δ of a whole parameter, and may overwrite it. What is not kept is 0 when ``combine`` gets it.
    """

    title: str
    source: str
    combine: Combine | None
    keep: Keep | None = None
    parameters: Mapping[str, MethodParameter] = field(default_factory=dict)

    @property
    def linear(self) -> bool:
        return self.combine is None

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
Keep = Callable[["Tensor", Parameters, str], "Tensor | None"]
Weigh = Callable[["Tensor", "Tensor", Parameters], "Tensor"]


@dataclass(frozen=True, slots=True)
class MethodParameter:
    """A number that a method is given by name, within ``low`` … ``high``. ``help``: one phrase."""

    default: float
    low: float
    high: float
    help: str


# What a method that weighs terms by their inner products may be given.
ROWS = {"rows": MethodParameter(0.0, 0.0, 1.0, "1: each output row for itself; 0: a whole parameter")}


@dataclass(frozen=True, slots=True)
class Method:
    """One way to merge. ``source``: where its equation is from.

    ``combine(W, [Δ₁, …], [λ₁, …], parameters)`` → W′, for some rows at a time; it may overwrite the tensors. None is
    W + Σ λᵢΔᵢ, which alone is linear in each λ whatever the other terms are: then LoRAs are added without forming
    their Δ, and a search draws every cell from one model in memory.

    ``keep(Δ, parameters, name)``: by what each of a term's numbers is multiplied before ``combine`` gets it, of Δ's
    shape, booleans for those that take part, or None for all. It is given the Δ of a whole parameter, and may overwrite
    it; ``name`` is the parameter's and the term's, for chance that depends on nothing else.

    ``weigh(G, λ, parameters)`` instead of both: W′ = W + Σ cᵢΔᵢ with coefficients c [k] from the inner products
    Gᵢⱼ = ⟨Δᵢ, Δⱼ⟩ [k, k] over a parameter and λ [k], all float64. Where the parameter ``rows`` is 1 they are those of
    each output row alone, and G, c have the rows before their other dimensions.

    ``terms``: how many it merges, where that is fixed.
    """

    title: str
    source: str
    combine: Combine | None = None
    keep: Keep | None = None
    parameters: Mapping[str, MethodParameter] = field(default_factory=dict)
    weigh: Weigh | None = None
    terms: int | None = None

    @property
    def linear(self) -> bool:
        return self.combine is None and self.weigh is None

    def per_row(self, parameters: Parameters) -> bool:
        """Whether ``weigh`` is asked for each output row."""
        return bool(self.weigh and parameters.get("rows"))

"""The ``check`` section: bounds on the figures that the steps report."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from math import inf
from typing import Any

from lcmmerge.errors import QualityError
from lcmmerge.recipe.schema import Bound, Check


@dataclass(frozen=True, slots=True)
class Checked:
    """A figure and its bounds. ``of``: ``NAME``, ``NAME style`` or ``NAME style unet``. ``value`` None is infinite."""

    of: str
    figure: str
    value: float | None
    min: float | None
    max: float | None

    @property
    def broken(self) -> str:
        """The bound that is missed, in words; empty where none is."""
        value = inf if self.value is None else self.value
        if self.min is not None and value < self.min:
            return f"at least {self.min:g}"
        return f"at most {self.max:g}" if self.max is not None and value > self.max else ""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"kept": not self.broken}

    def __str__(self) -> str:
        value = "∞" if self.value is None else f"{self.value:.6g}"
        return f"{self.of}: {self.figure} is {value}, and must be {self.broken}"


def checked(check: Check, figures: Mapping[str, Mapping[str, Any]]) -> Iterator[Checked]:
    """``figures``: output → what its fuse, and its search and export where there are any, reported."""
    for output, reported in figures.items():
        for name in Check.model_fields:
            bound: Bound | None = getattr(check, name)
            if bound is not None:
                for of, value in _values(name, reported):
                    yield Checked(" ".join((output, *of)), name, value, bound.min, bound.max)


def refuse_missed(found: list[Checked]) -> None:
    """Raises QualityError with every miss."""
    missed = [str(item) for item in found if item.broken]
    if missed:
        raise QualityError(
            f"{len(missed)} of {len(found)} checks are missed",
            "the outputs are there to look at; nothing is published",
            missed,
        )


def _values(name: str, reported: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], float | None]]:
    if name == "bytes":
        yield (), reported["bytes"]
    elif name == "search_regret":
        if name in reported:
            yield (), reported[name]
    elif name == "parity":
        yield from (((graph,), error) for graph, error in reported.get(name, {}).items())
    elif name == "coverage":
        yield from (((term,), share) for term, share in reported["coverage"].items())
    else:
        yield from (((row["term"], row["component"]), row[name]) for row in reported["rows"])

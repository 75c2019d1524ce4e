"""Bounds on the figures that the steps report, looked at when all outputs are made."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from math import inf
from pathlib import Path
from typing import Any

from pydantic import Field

from lcmmerge.errors import QualityError
from lcmmerge.recipe.manifest import RunManifest
from lcmmerge.recipe.values import Strict


class Bound(Strict):
    """What a figure may be."""

    min: float | None = None
    max: float | None = None


class Check(Strict):
    """Bounds on what the steps report; a miss ends the run with exit code 4."""

    coverage: Bound | None = Field(None, description="The share of each term's keys that found a home: 0 to 1.")
    relative: Bound | None = Field(None, description="‖λΔ‖ / ‖θ‖ of each term in each component.")
    signal: Bound | None = Field(None, description="‖λΔ‖ / ‖rounding error‖ of each term in each component.")
    weakest_signal: Bound | None = Field(None, description="The same, of the layer where it is least.")
    kept: Bound | None = Field(
        None, description="The share of each term's change in each component that rounding kept: 0 to 1."
    )
    search_regret: Bound | None = Field(
        None, description="How much worse than the best of `search` the λs of `fuse` score, in standard deviations."
    )
    parity: Bound | None = Field(
        None, description="The largest error of each exported graph, as a share of its largest output."
    )
    bytes: Bound | None = Field(None, description="The size of all files of an output.")


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


def compare(check: Check, manifest: RunManifest, out: Path) -> RunManifest:
    """Write figures beside their bounds into run.json, and return ``manifest`` with them. Raises QualityError."""
    figures: dict[str, dict[str, Any]] = {output: {} for output in manifest.folders}
    for step, record in manifest.steps.items():
        output = step.partition(" ")[2]
        figures[output] = {**record.figures, **figures[output]}
    found = [item for output, reported in figures.items() for item in _checked(check, output, reported)]
    manifest = replace(manifest, check=tuple(item.as_dict() for item in found))
    manifest.write(out)
    if missed := [str(item) for item in found if item.broken]:
        raise QualityError(
            f"{len(missed)} of {len(found)} checks are missed",
            "the outputs are there to look at; nothing is published",
            missed,
        )
    return manifest


def _checked(check: Check, output: str, reported: Mapping[str, Any]) -> Iterator[Checked]:
    for name in Check.model_fields:
        bound: Bound | None = getattr(check, name)
        if bound is not None:
            for of, value in _values(name, reported):
                yield Checked(" ".join((output, *of)), name, value, bound.min, bound.max)


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
        yield from (((row["term"], row["component"]), row.get(name)) for row in reported["rows"])

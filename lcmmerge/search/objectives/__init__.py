"""What a cell is worth: a module here that defines ``OBJECTIVE`` is the objective of its name, _ as -.

Third parties add theirs by an entry point in the group ``lcmmerge.objectives`` that leads to an ``Objective``.
"""

from __future__ import annotations

from typing import cast

from lcmmerge.errors import NotFoundError
from lcmmerge.registry import entries
from lcmmerge.search.objectives.base import Measure, Objective, Samples, is_program

__all__ = ["Measure", "Objective", "Samples", "is_program", "objective", "objectives"]


def objectives() -> dict[str, Objective]:
    """Every registered objective by name, in name order."""
    found = entries("lcmmerge.search.objectives", "OBJECTIVE")
    return {name.replace("_", "-"): cast(Objective, one) for name, one in found.items()}


def objective(text: str) -> Objective:
    """``NAME``, or ``NAME=WEIGHTS`` with another network than its own. Raises NotFoundError, LcmMergeError."""
    name, equals, weights = text.partition("=")
    known = objectives()
    if name not in known:
        raise NotFoundError(f"{name!r}: no such objective", f"there are {', '.join(known)}")
    return known[name].looking_with(weights) if equals else known[name]

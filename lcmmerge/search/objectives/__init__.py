"""What a cell is worth: a module here that defines ``OBJECTIVE`` is the objective of its name."""

from __future__ import annotations

from typing import cast

from lcmmerge.registry import entries
from lcmmerge.search.objectives.base import Measure, Objective, Samples

__all__ = ["Measure", "Objective", "Samples", "objectives"]


def objectives() -> dict[str, Objective]:
    """Every registered objective by name, in name order."""
    return {name: cast(Objective, found) for name, found in entries("lcmmerge.search.objectives", "OBJECTIVE").items()}

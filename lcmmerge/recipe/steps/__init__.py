"""What a recipe can ask for: a module here that defines ``STEP`` is the step of its name, which is its section's too.

Third parties add theirs by an entry point in the group ``lcmmerge.steps`` that leads to a ``Step``. ``check`` and
``publish``, which come when all outputs are made, make no product and so are none.
"""

from __future__ import annotations

from typing import cast

from lcmmerge.recipe.steps.base import Build, Step, StepWork
from lcmmerge.registry import entries

__all__ = ["Build", "Step", "StepWork", "steps"]


def steps() -> dict[str, type[Step]]:
    """Every registered step by name, in the order in which they are done."""
    found = cast("dict[str, type[Step]]", entries("lcmmerge.recipe.steps", "STEP"))
    return dict(sorted(found.items(), key=lambda item: (item[1].order, item[0])))

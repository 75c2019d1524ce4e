"""What a step of a recipe is: the fields of its section, and how its products are planned, made and recorded."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import Field

from lcmmerge import history
from lcmmerge.bake.outcome import Settings
from lcmmerge.draw.jobs import MOST_IMAGES, MOST_STEPS
from lcmmerge.merge.plan import Plan
from lcmmerge.output import Output
from lcmmerge.recipe.manifest import RunManifest
from lcmmerge.recipe.sources import Input
from lcmmerge.recipe.values import Size, Strict
from lcmmerge.tensors.made import files_at
from lcmmerge.version import __version__


@dataclass(frozen=True, slots=True)
class Build:
    """One output's merge, planned: what every other product of the output is made from.

    ``fuse``: its section. ``inputs``: role → source. ``key``: sha256 of everything that its bytes depend on.
    ``description``: the recipe's.
    """

    name: str
    fuse: Step
    plan: Plan
    settings: Settings
    inputs: Mapping[str, Input]
    key: str
    description: str | None

    @property
    def device(self) -> str | None:
        """Where images are drawn; None for the best that there is."""
        return None if self.settings.device == "cpu" else self.settings.device


@dataclass(frozen=True, slots=True)
class StepWork:
    """What a step is given to make one product.

    ``content``: where, a file or folder that is not there yet. ``out``: the run's folder. ``done``: what this run has
    done until now. ``force``: replace what no run made.
    """

    build: Build
    content: Path
    out: Path
    done: RunManifest
    force: bool
    output: Output


class Step(Strict):
    """A section of a recipe, by which each output gets one more product. Its fields are the section's.

    ``target``: the product's path below the run's folder; ``{}`` stands for the output's name. ``order``: steps are
    done in it. ``version``: of what is made; a change makes finished products stale. ``always``: done for every output,
    without a section. ``resumes``: what an interrupted one leaves to be gone on with, in words.
    """

    target: ClassVar[str]
    order: ClassVar[int] = 9
    version: ClassVar[int] = 1
    always: ClassVar[bool] = False
    resumes: ClassVar[str | None] = None

    def extras(self) -> Iterable[str]:
        """The extras of the installation that must be there."""
        return ()

    def facts(self, build: Build) -> dict[str, Any]:
        """What the product depends on, beside the output's weights; JSON-ready."""
        return self.model_dump()

    def doubts(self, build: Build) -> Iterable[str]:
        """What is to be said before anything is done."""
        return ()

    def costs(self, build: Build) -> tuple[int, int, int]:
        """Bytes to be read, of these to be downloaded, and to be written, where headers tell."""
        return 0, 0, 0

    def make(self, work: StepWork) -> dict[str, Any]:
        """Make ``work.content``; what run.json says of it beside its files, JSON-ready, for the recipe's checks too."""
        raise NotImplementedError

    def recorded(self, content: Path) -> Iterable[Path]:
        """The product's files whose change makes the step due again."""
        return files_at(content)


def step_key(name: str, version: int, facts: Mapping[str, Any]) -> str:
    """sha256 of a step's inputs and parameters, and of our version of it."""
    text = history.canonical_json({"step": name, "version": f"{__version__}/{version}", **facts})
    return hashlib.sha256(text.encode()).hexdigest()


class DrawingStep(Step):
    """What is drawn, whatever with."""

    prompts: list[Annotated[str, Field(min_length=1)]] = Field(min_length=1, description="What to draw.")
    count: int = Field(1, gt=0, le=MOST_IMAGES, description="Images per prompt.")
    seed: int = Field(0, ge=0, lt=2**32, description="Of each prompt's first image; the next ones follow.")
    size: Size | None = Field(
        None, description="WIDTHxHEIGHT in pixels. Default: what the model was trained at."
    )
    steps: int | None = Field(None, gt=0, le=MOST_STEPS, description="Default: the accelerator's.")
    batch: int = Field(1, gt=0, le=MOST_IMAGES, description="Images drawn at once.")

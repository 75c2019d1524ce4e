"""What a recipe may hold, and the JSON schema that editors complete and check recipes by.

    version: 1
    sources: {base: hf://owner/repo, style: style.safetensors, lcm: hf://owner/repo/file.safetensors}
    fuse: {base: base, terms: {style: 0.8, lcm: 1.0}}

θ′ = θ_base + Σ λᵢτᵢ, the terms added in the order in which they stand. A step's section is in the step's own file.
"""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BeforeValidator, Field, create_model

from lcmmerge.recipe.sources import RecipeSource, as_source
from lcmmerge.recipe.steps import Step, steps
from lcmmerge.recipe.steps.check import Check
from lcmmerge.recipe.steps.fuse import Fuse
from lcmmerge.recipe.steps.publish import Published
from lcmmerge.recipe.values import Strict, Word

Reading = Annotated[RecipeSource, BeforeValidator(as_source, json_schema_input_type=str | RecipeSource)]


class _Head(Strict):
    """Of what an output is made, and how many there are."""

    version: Literal[1]
    description: str | None = None
    sources: dict[Word, Reading] = Field(min_length=1, description="Name → reference, or {reference, variant}.")
    fuse: Fuse
    matrix: dict[str, Annotated[list[str | float | bool], Field(min_length=1)]] | None = Field(
        None, min_length=1,
        description="One output per combination: `lambda.TERM` or a path such as fuse.terms.style.source → its values.",
    )  # fmt: skip


if TYPE_CHECKING:
    _Sections = _Head
else:
    optional = [name for name, step in steps().items() if not (step.always or name in _Head.model_fields)]
    _Sections = create_model("_Sections", __base__=_Head, **{name: (steps()[name] | None, None) for name in optional})


class Recipe(_Sections):
    """How a few-step model is made."""

    check: Check | None = None
    publish: Published | None = Field(None, description="The Hub repository that `lcmmerge run --publish` uploads to.")

    @property
    def steps(self) -> dict[str, Step]:
        """What is done for each output, in that order."""
        sections = {name: step() if step.always else getattr(self, name) for name, step in steps().items()}
        return {name: section for name, section in sections.items() if section is not None}


def json_schema() -> str:
    """The text of the shipped ``schema.json``."""
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    schema = head | Recipe.model_json_schema(by_alias=True) | {"title": "lcmmerge recipe"}
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    sys.stdout.write(json_schema())

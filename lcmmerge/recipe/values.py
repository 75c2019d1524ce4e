"""What every value of a recipe is held to."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from lcmmerge.draw.jobs import parse_size
from lcmmerge.errors import RecipeError
from lcmmerge.tensors.dtypes import LARGEST

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$")]
Factor = Annotated[float, Field(ge=-LARGEST, le=LARGEST)]  # of float32
Word = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_-]*$")]
Size = Annotated[str, Field(pattern=r"^\d+x\d+$")]


class Strict(BaseModel):
    """No unknown keys, no silent conversions, no NaN."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


def pixels(size: Size, place: str, example: str = "512x512") -> tuple[int, int]:
    """Width and height. Raises RecipeError where no model has them; ``place``: of the recipe, such as search.size."""
    try:
        return parse_size(size)
    except ValueError as error:
        raise RecipeError(f"{place}: {error}", f"such as {example}") from None

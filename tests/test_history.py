from __future__ import annotations

import json
from pathlib import Path

import pytest

from lcmmerge.history import before, formula, older
from lcmmerge.tensors import TensorSource

STYLED = {"type": "lcmmerge", "base": {"name": "base"}, "terms": [{"lambda": 0.8, "name": "style"}]}


def source(name: str, **said: object) -> TensorSource:
    metadata = {key: value if isinstance(value, str) else json.dumps(value) for key, value in said.items()}
    return TensorSource(Path(name), "single-file", {}, (), metadata)


@pytest.mark.parametrize(
    ("recipe", "text"),
    [
        (STYLED, "base + 0.8 × style"),
        (STYLED | {"type": "lcmmerge combine", "base": None}, "0.8 × style"),
        ({"type": "lcmmerge extract", "base": {"name": "b"}, "tuned": {"name": "t"}, "rank": 4}, "t − b, rank 4"),
        (STYLED | {"terms": [None]}, "base + ?"),
        ({"type": "webui"}, "merged by webui"),
        ({}, "of an unknown program"),
    ],
)
def test_a_recipe_as_a_formula(recipe: dict[str, object], text: str) -> None:
    assert formula(recipe) == text


@pytest.mark.parametrize("models", ["[", "[]", {"a": None}, {"a": {"name": "x"}}, {"a": {"sd_merge_recipe": "x"}}])
def test_what_others_write_is_no_history(models: object) -> None:
    assert older(source("merge", sd_merge_models=models)) == {}


def test_the_recipes_of_all_that_went_in() -> None:
    models = {"0" * 64: {"name": "one", "sd_merge_recipe": STYLED}}
    two = source("two", sd_merge_models=models, sd_merge_recipe={"type": "webui"})
    assert before([two, source("plain")]) == {"one": STYLED, "two": {"type": "webui"}}

"""The schema that ships is the models', and every recipe that ships obeys it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from lcmmerge import refs
from lcmmerge.accelerators import by_reference
from lcmmerge.recipe.document import read_document
from lcmmerge.recipe.loader import load
from lcmmerge.recipe.schema import json_schema

ROOT = Path(__file__).parents[2]
SHIPPED = ROOT / "lcmmerge" / "recipe" / "schema.json"
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))


def test_the_shipped_schema_is_current() -> None:
    assert SHIPPED.read_text("utf-8") == json_schema(), "python -m lcmmerge.recipe.schema > lcmmerge/recipe/schema.json"


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipes_are_valid(path: Path) -> None:
    loaded = load(path)
    assert loaded.recipe.description
    assert not loaded.unused
    first = path.read_text("utf-8").splitlines()[0]
    assert (path.parent / first.removeprefix("# yaml-language-server: $schema=")).resolve() == SHIPPED


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_editors_agree(path: Path) -> None:
    """What an editor does with the schema: accept a recipe, and mark what is wrong in it."""
    schema, tree = json.loads(SHIPPED.read_text("utf-8")), read_document(path).tree
    editor = Draft202012Validator(schema)
    editor.validate(tree)
    for wrong in ({"serch": {}}, {"fuse": {"base": "base"}}, {"check": {"signal": {"min": "3"}}}, {"version": 2}):
        assert not editor.is_valid(tree | wrong)


def test_the_schema_is_one() -> None:
    Draft202012Validator.check_schema(json.loads(SHIPPED.read_text("utf-8")))


@pytest.mark.parametrize("path", [path for path in RECIPES if path.stem != "digits"], ids=lambda path: path.stem)
def test_recipes_use_an_accelerator_that_we_know(path: Path) -> None:
    loaded = load(path)
    assert all(refs.parse(source.reference).kind == "hub" for source in loaded.recipe.sources.values())
    for cell in loaded.cells:
        references = (loaded.recipe.sources[term.source or name].reference for name, term in cell.fuse.terms.items())
        assert sum(by_reference(reference) is not None for reference in references) == 1


def test_the_embedded_recipe_needs_no_network() -> None:
    (path,) = (path for path in RECIPES if path.stem == "digits")
    sources = load(path).recipe.sources
    assert all(refs.parse(source.reference).kind == "local" for source in sources.values())
    assert sources["lcm"].accelerator == "lcm"

"""What every registered step must keep to."""

from __future__ import annotations

import json
from typing import Any

import pytest

from lcmmerge.bake.outcome import Settings
from lcmmerge.extras import EXTRAS
from lcmmerge.recipe.schema import Recipe
from lcmmerge.recipe.steps import Build, Step, steps
from lcmmerge.refs.files import is_inside

OURS = ("fuse", "card", "search", "generate", "export")
# Of those that have no section without any field; and beside it another one.
SECTIONS: dict[str, dict[str, Any]] = {
    "fuse": {"base": "base", "terms": {"style": 1.0}},
    "search": {"prompts": ["a fox"], "grid": {"style": [1.0]}},
    "generate": {"prompts": ["a fox"]},
}


def section(name: str, **more: Any) -> Step:
    return steps()[name].model_validate({**SECTIONS.get(name, {}), **more})


BUILD = Build("pico", section("fuse"), None, Settings(), {}, "key", None)  # type: ignore[arg-type]  # the plan


def test_the_order_in_which_they_are_done() -> None:
    assert tuple(steps())[: len(OURS)] == OURS


def test_no_two_make_the_same() -> None:
    assert len({step.target for step in steps().values()}) == len(steps())


@pytest.mark.parametrize("name", steps())
def test_says_what_it_is_and_where_its_product_lies(name: str) -> None:
    step = steps()[name]
    assert step.__doc__
    assert step.target.count("{}") == 1
    assert is_inside(step.target.format("pico"))
    assert set(section(name).extras()) <= EXTRAS.keys()


@pytest.mark.parametrize("name", steps())
def test_has_a_section_or_is_always_done(name: str) -> None:
    assert (name in Recipe.model_fields) != steps()[name].always


@pytest.mark.parametrize("name", steps())
def test_depends_on_what_json_can_tell(name: str) -> None:
    assert json.dumps(section(name).facts(BUILD), allow_nan=False, sort_keys=True)


@pytest.mark.parametrize(("name", "field"), [("search", "front"), ("generate", "seed"), ("export", "static")])
def test_is_due_again_when_its_section_changes(name: str, field: str) -> None:
    more = {field: {"front": True, "seed": 1, "static": ["64x64"]}[field]}
    assert section(name).facts(BUILD) != section(name, **more).facts(BUILD)

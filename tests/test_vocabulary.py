"""docs/vocabulary.md names what exists, and every option and recipe field stands in it."""

from __future__ import annotations

import inspect
import json
import re
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from fusing import Files, fuse
from PIL import Image
from pydantic import BaseModel

import lcmmerge.api
from lcmmerge.archs import identify
from lcmmerge.cli import cli as program
from lcmmerge.draw import png
from lcmmerge.draw.draw import Drawn
from lcmmerge.draw.jobs import Job
from lcmmerge.draw.presets import Preset
from lcmmerge.recipe.schema import Recipe
from lcmmerge.tensors import open_source

PAGE = Path(__file__).parents[1] / "docs" / "vocabulary.md"
TEXT = PAGE.read_text("utf-8")
COLUMNS = ("option", "recipe", "metadata", "python")
PRESET = Preset("lcm", "LCMScheduler", 4, 1.0, {})
SPANS = re.compile(r"`([^`]+)`")


def _claimed(column: str) -> set[str]:
    rows = [line.split("|")[1:-1] for line in TEXT.splitlines() if line.startswith("|")]
    assert {len(row) for row in rows} == {2 + len(COLUMNS)}
    return {span for row in rows for span in SPANS.findall(row[2 + COLUMNS.index(column)])}


def _options() -> set[str]:
    params = [param for command in program.commands.values() for param in command.params]
    return {name for param in params for name in (*param.opts, *param.secondary_opts) if name.startswith("--")}


def _arguments() -> set[str]:
    params = [param for command in program.commands.values() for param in command.params]
    return {param.make_metavar(None).strip("[].").upper() for param in params if param.param_type_name == "argument"}


def _fields(model: type[BaseModel], above: str = "") -> Iterator[str]:
    """``fuse.terms.lambda``: a mapping's own names are left out."""
    for name, field in model.model_fields.items():
        path = above + (field.alias or name)
        yield path
        for one in _models(field.annotation):
            yield from _fields(one, f"{path}.")


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in typing.get_args(annotation):
        yield from _models(argument)


def _python() -> Iterator[str]:
    """The merge's fields and methods, what these take, and what their keywords hold."""
    for name, one in {**vars(lcmmerge.api), **vars(lcmmerge.api.Merge)}.items():
        if inspect.isfunction(one) and one.__module__ == "lcmmerge.api" and not name.startswith("_"):
            yield from (name, *inspect.signature(one).parameters)
        elif typing.is_typeddict(one):
            yield from (name, *one.__annotations__)
    for value in (lcmmerge.Merge, lcmmerge.Term, lcmmerge.Source):
        yield from (value.__name__, *value.__dataclass_fields__)


def _keys(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for key, below in value.items():
            yield from (key, *_keys(below))
    elif isinstance(value, list):
        for below in value:
            yield from _keys(below)


def test_options_and_arguments_exist() -> None:
    assert _claimed("option") <= _options() | _arguments()


def test_recipe_fields_exist() -> None:
    assert _claimed("recipe") <= set(_fields(Recipe))


def test_python_names_exist() -> None:
    assert _claimed("python") <= set(_python())


def test_metadata_keys_are_written(files: Callable[[str], Files], tmp_path: Path) -> None:
    """In a merge by ties whose style is a checkpoint with block weights, and in a PNG."""
    sd1 = files("sd1")
    out = tmp_path / "merged.safetensors"
    asked = {"tuned_from": sd1.base(), "block_weights": {"style": "M00=0.5"}, "method": "ties"}
    fuse(sd1.base(), out, sd1.base("fp32"), **asked)
    metadata = open_source(out).metadata
    drawn = Drawn(Job("a fox", "", 0, 64, 64), Image.new("RGB", (64, 64)), None)
    origin = png.Origin.of(identify(open_source(sd1.base())), None, torch.float32, torch.device("cpu"))
    png.save(drawn, tmp_path / "fox.png", PRESET, origin)
    with Image.open(tmp_path / "fox.png") as image:
        text = json.loads(image.text["lcmmerge"])
    written = {*metadata, *_keys(json.loads(metadata["sd_merge_recipe"])), *_keys(text)}
    assert _claimed("metadata") <= written


def test_every_option_is_on_the_page() -> None:
    assert _options() - set(SPANS.findall(TEXT)) == set()


def test_every_recipe_field_is_on_the_page() -> None:
    """The bounds of every check are the same two."""
    bounds = re.compile(r"check\.\w+\.(min|max)")
    assert {path for path in _fields(Recipe) if not bounds.fullmatch(path)} - set(SPANS.findall(TEXT)) == set()


@pytest.mark.parametrize(("option", "field"), [("--block-weights", "block_weights"), ("--tuned-from", "tuned_from")])
def test_an_option_and_its_field_are_spelled_alike(option: str, field: str) -> None:
    assert option.strip("-").replace("-", "_") == field
    assert {f"fuse.terms.{field}"} <= set(_fields(Recipe))

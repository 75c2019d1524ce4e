"""The ``generate`` section: the output's images, as ``lcmmerge generate`` draws them, and drawn once."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Ran
from fusing import Files
from PIL import Image
from recipefile import due, recipe, run

from lcmmerge.errors import RecipeError

GENERATE = """\
generate:
  prompts: [the thing, in]
  count: 2
  seed: 5
  steps: 2
  batch: 4
"""
NAMES = ("0000-5.png", "0001-6.png", "0002-5.png", "0003-6.png")


@pytest.fixture
def sd1(files: Callable[[str], Files]) -> Files:
    return files("sd1")


def test_images_are_those_of_the_command(sd1: Files, tmp_path: Path, cli: Callable[..., Ran]) -> None:
    manifest = run(recipe(tmp_path, sd1, base=sd1.folder(), more=GENERATE), tmp_path / "out")
    record = manifest.steps["generate pico"]
    assert list(record.outputs) == [f"images/pico/{name}" for name in NAMES]
    assert (record.figures["evaluations"], record.figures["scheduler"]) == (2, "LCMScheduler")
    options = ("--count", 2, "--seed", 5, "--steps", 2, "--batch", 4)
    prompts = ("--prompt", "the thing", "--prompt", "in")
    assert cli("generate", tmp_path / "out/pico", *prompts, *options, "-o", tmp_path / "direct").code == 0
    for name in NAMES:
        assert (tmp_path / "out/images/pico" / name).read_bytes() == (tmp_path / "direct" / name).read_bytes()
    with Image.open(tmp_path / "out/images/pico" / NAMES[0]) as image:
        assert str(tmp_path) not in json.dumps(image.text)


def test_images_are_drawn_once_and_follow_the_weights(sd1: Files, tmp_path: Path) -> None:
    path, out = recipe(tmp_path, sd1, base=sd1.folder(), more=GENERATE), tmp_path / "out"
    run(path, out)
    assert set(due(path, out).values()) == {None}
    assert due(path, out, "generate.steps=3") == {
        "fuse pico": None,
        "card pico": None,
        "generate pico": "its inputs or parameters changed",
    }
    assert due(path, out, "lambda.style=0.7")["generate pico"] == "follows fuse pico"
    (out / "images/pico" / NAMES[1]).unlink()
    assert due(path, out)["generate pico"] == "its output is gone or was changed"
    run(path, out)
    assert sorted(file.name for file in (out / "images/pico").iterdir()) == sorted(NAMES)


def test_a_size_that_no_model_has(sd1: Files, tmp_path: Path) -> None:
    path = recipe(tmp_path, sd1, base=sd1.folder(), more=GENERATE + "  size: 65x64\n")
    with pytest.raises(RecipeError, match=r"generate\.size"):
        run(path, tmp_path / "out")

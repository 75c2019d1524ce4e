"""Exports in the oldest and the newest ONNX Runtime that we allow, each in a process that has it alone."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from exporting import cache_home
from fusing import Files
from PIL import Image
from running import exact
from runtimes import ROOT, floor, runtime

if TYPE_CHECKING:
    from conftest import Ran

pytestmark = pytest.mark.e2e

DRAW = ("--prompt", "the thing", "--size", "64x64", "--steps", 2, "--seed", 3)


@pytest.fixture
def oldest(tmp_path_factory: pytest.TempPathFactory) -> str:
    """PYTHONPATH with it."""
    return os.pathsep.join(map(str, (runtime("oldest", cache_home(tmp_path_factory)), ROOT)))


def test_they_draw_the_same(
    files: Callable[[str], Files], process: Callable[..., Ran], oldest: str, tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:  # fmt: skip
    """The oldest takes the plain graphs by itself."""
    export, images = exact(tmp_path_factory, files("sd1")), {}
    for name, path in (("oldest", oldest), ("newest", str(ROOT))):
        done = process("generate", export, *DRAW, "--provider", "cpu", "-o", tmp_path / name, "--json", PYTHONPATH=path)
        assert done.code == 0, done.err
        said = json.loads(done.out)
        (image,) = (tmp_path / name).glob("*.png")
        images[name] = np.asarray(Image.open(image)).astype(int)
        assert said["model"]["graph"] == ("plain" if name == "oldest" else "fused")
        assert said["model"]["onnxruntime"].startswith(floor()) == (name == "oldest")
    assert np.abs(images["oldest"] - images["newest"]).max() <= 2
    assert images["newest"].std() > 10


def test_a_graph_that_is_too_new_is_not_its_own_fault(
    files: Callable[[str], Files], process: Callable[..., Ran], oldest: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    export = exact(tmp_path_factory, files("sd1"))
    quick = ("--component", "text_encoder", "--repeats", 1, "--warmup", 0, "--no-compile", "--provider", "cpu")
    done = process("bench", export, *quick, PYTHONPATH=oldest)
    assert done.code == 1
    assert f"model.fused.onnx: ONNX Runtime {floor()}" in done.err and "is too old for it" in done.err
    assert "Hint: install 1.25 or later" in done.err

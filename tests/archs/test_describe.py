"""A drafted family's file, loaded, reads the very file that it was drafted from. Oracle: diffusers' folder of it."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from families import CASES, folder, single_file, state_of
from safetensors.torch import save_file

from lcmmerge.archs import Model
from lcmmerge.archs.describe import draft
from lcmmerge.tensors import open_source
from lcmmerge.terms.operand import Operand

ROOT = Path(__file__).parents[2]
WHOLE = ("ernie_image", "hidream", "qwen_image", "qwen_image21", "z_image")  # of which the headers tell all


def read(text: str, path: Path, monkeypatch: pytest.MonkeyPatch) -> Model:
    """The file as the draft alone reads it."""
    names: dict[str, Any] = {}
    exec(text, names)
    module = importlib.import_module("lcmmerge.archs.identify")
    monkeypatch.setattr(module, "architectures", lambda: {"draft": replace(names["ARCHITECTURE"], name="draft")})
    return module.identify(open_source(path))


def assert_ruff(text: str) -> None:
    command = [sys.executable, "-m", "ruff", "check", "--stdin-filename", str(ROOT / "lcmmerge/archs/draft.py"), "-"]
    done = subprocess.run(command, input=text, text=True, capture_output=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", WHOLE)
def test_it_reads_the_very_file(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = state_of(name)
    path = single_file(tmp_path / "model.safetensors", name, weights)
    text = draft(open_source(path), open_source(folder(tmp_path / "model", name, weights)))
    assert_ruff(text)
    assert text.count("# Not matched") == len(CASES[name].beside)
    model = read(text, path, monkeypatch)
    assert model.parameters.keys() == weights.keys() and not model.missing
    for key, parameter in model.parameters.items():
        assert torch.equal(Operand.of_parameter(key, parameter).read().reshape(weights[key].shape), weights[key]), key


def test_what_headers_do_not_tell_is_a_comment(tmp_path: Path) -> None:
    """Of FLUX.1's equal shapes and unlike names; each name is in a row or in a comment."""
    weights = state_of("flux1")
    path = single_file(tmp_path / "model.safetensors", "flux1", weights)
    text = draft(open_source(path), open_source(folder(tmp_path / "model", "flux1", weights)))
    assert_ruff(text)
    assert "# Not matched: " in text
    for name in weights:
        inner = re.sub(r"^(single_)?transformer_blocks\.\d+\.", "", name.removeprefix("transformer."))
        both = re.sub(r"\b(weight|bias)$", "{p}", inner)
        assert f'"{inner}"' in text or f'"{both}"' in text, name


def test_alone_and_by_the_command(tmp_path: Path, cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Its names are diffusers' then."""
    path = single_file(tmp_path / "model.safetensors", "qwen_image", state_of("qwen_image"), "")
    done = cli("describe", path)
    assert (done.code, done.err) == (0, "")
    assert read(done.out, path, monkeypatch).parameters.keys() == state_of("qwen_image").keys()


def test_names_are_data(tmp_path: Path) -> None:
    """What a header calls a tensor is never code."""
    evil = 'a"); raise SystemExit  # \n raise SystemExit'
    shapes = {f"blocks.{i}.{name}.weight": torch.zeros(2, 3) for i in range(2) for name in ("a", "b", "c", evil)}
    save_file(shapes | {evil: torch.zeros(5)}, tmp_path / "evil.safetensors")
    exec(draft(open_source(tmp_path / "evil.safetensors")), {})


def test_no_transformer(tmp_path: Path, cli: Callable[..., Any]) -> None:
    save_file({"a.weight": torch.zeros(2)}, tmp_path / "a.safetensors")
    cli("describe", tmp_path / "a.safetensors").assert_fault(3, "no lists of equal blocks")

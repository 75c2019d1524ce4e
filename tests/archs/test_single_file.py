"""Oracle: what diffusers reads from a single file that our key map wrote, weight for weight."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline
from pico import PICOS, pico
from tiers import of_each


@pytest.mark.parametrize("name", of_each(PICOS))
def test_diffusers_reads_the_same_weights(name: str, tmp_path: Path) -> None:
    model = pico(name)
    folder = model.folder(tmp_path / "folder", "fp32")
    file = model.single_file(tmp_path / "model.safetensors", "fp32", extras=True)
    read = type(model.pipeline).from_single_file(str(file), config=str(folder), local_files_only=True)
    state, expected = replace(model, pipeline=read).state(), model.state()
    assert state.keys() == expected.keys()
    assert not [name for name, tensor in expected.items() if not torch.equal(state[name], tensor)]


@pytest.mark.parametrize("name", ["sd1", "sdxl_refiner"])
def test_a_folder_loads_offline(name: str, tmp_path: Path) -> None:
    model = pico(name)
    read = DiffusionPipeline.from_pretrained(model.folder(tmp_path / "folder"), local_files_only=True)
    state = replace(model, pipeline=read).state()
    assert all(torch.equal(state[name].half(), tensor.half()) for name, tensor in model.state().items())

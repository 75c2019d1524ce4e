"""Qwen-Image in every layout. Oracles: diffusers' own class, at its published and at a tiny size."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import qwen
import torch
from accelerate import init_empty_weights
from diffusers import QwenImageTransformer2DModel
from named import named_source

from lcmmerge.archs import architectures, guess_architecture, identify, likely_architectures, names_of
from lcmmerge.errors import UnknownArchitectureError
from lcmmerge.tensors import open_source

ARCH = architectures()["qwen_image"]


def shapes() -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in qwen.transformer().state_dict().items()}


def test_the_table_holds_the_published_models_names() -> None:
    with init_empty_weights():
        real = QwenImageTransformer2DModel()  # the published config: 60 blocks
    names = {f"transformer.{name}" for name in real.state_dict()}
    assert names == ARCH.keymap("single-file").slots.keys()
    assert sum(tensor.numel() for tensor in real.state_dict().values()) / 1e9 == pytest.approx(20.4, abs=0.05)


@pytest.mark.parametrize("begin", ["", "model.diffusion_model.", "diffusion_model.", "transformer.", "model."])
def test_a_transformer_alone(begin: str) -> None:
    found = identify(named_source({begin + name: shape for name, shape in shapes().items()}))
    assert (found.arch.name, found.layout, found.components) == ("qwen_image", "component", ("transformer",))
    assert found.shapes == {f"transformer.{name}": shape for name, shape in shapes().items()}
    assert not found.missing and not found.leftovers
    assert found.arch.denoiser.blocks() == ("BASE", "B00", "B01")


def test_a_folder_with_shards(tmp_path: Path) -> None:
    source = open_source(qwen.folder(tmp_path / "base"))
    found = identify(source)
    assert (found.arch.name, found.layout) == ("qwen_image", "diffusers")
    assert found.components == ("transformer", "vae", "text_encoder")
    assert len({info.path for info in source if info.name.startswith("transformer.")}) > 2
    assert found.parameters.keys() == source.tensors.keys() and not found.leftovers


def test_a_layer_that_is_missing() -> None:
    lacking = shapes()
    del lacking["transformer_blocks.1.attn.to_k.bias"]
    with pytest.raises(UnknownArchitectureError, match=r"to be Qwen-Image.*lacks 1 tensors.*\.1\.attn\.to_k\.bias"):
        identify(named_source(lacking))


@pytest.mark.parametrize("dialect", ["lightning", "diffusers", "comfy", "kohya", "peft"])
def test_every_dialect_of_a_lora(dialect: str, tmp_path: Path) -> None:
    names = names_of(ARCH)
    source = open_source(qwen.lora(tmp_path / "lora.safetensors", dialect))
    keys = {info.name.removesuffix(".weight").rpartition(".")[0] for info in source if "lora" in info.name}
    homes = {home.module for key in keys if (home := names.find(key))}
    assert len(homes) == len(keys) == qwen.BLOCKS * len(qwen.TARGETS)
    assert [arch.name for arch in likely_architectures(keys)] == ["qwen_image"]
    assert guess_architecture(keys) == "Qwen-Image"


def test_a_flux_lora_is_not_taken_for_one() -> None:
    keys = {f"transformer.transformer_blocks.0.{name}" for name in ("attn.to_q", "attn.add_k_proj", "ff.net.0.proj")}
    assert "FLUX.1" in (guess_architecture(keys) or "")


@pytest.mark.skipif(not os.environ.get("LCMMERGE_KEYLISTS"), reason="LCMMERGE_KEYLISTS names no folder")
def test_a_published_lora() -> None:
    listed = json.loads(Path(os.environ["LCMMERGE_KEYLISTS"], "qwen-image-lora-diffusers.keys.json").read_text("utf-8"))
    with init_empty_weights():
        real = QwenImageTransformer2DModel().state_dict()
    names = names_of(ARCH)
    for key in [key for key in listed if key.endswith(".lora_up.weight")]:
        home = names.find(key.removesuffix(".lora_up.weight"))
        assert home and real[f"{home.module.removeprefix('transformer.')}.weight"].shape[0] == listed[key][0]


def test_the_tiny_one_is_of_the_real_class() -> None:
    model = qwen.transformer()
    latents, prompt = torch.randn(1, 4, 16), torch.randn(1, 3, 12)
    drawn = model(latents, prompt, torch.ones(1, 3), torch.tensor([0.5]), [[(1, 2, 2)]], return_dict=False)[0]
    assert drawn.shape == (1, 4, 16)

"""Denoisers of diffusers that no family describes. Oracles: diffusers' own loader of adapters, and sums in float64."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    CogVideoXTransformer3DModel,
    MochiTransformer3DModel,
    PixArtTransformer2DModel,
)
from families import CASES, class_of, state_of
from fusing import load
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

Cli = Callable[..., Any]
SAID = "unknown family, names as they are"
RANK = 2
SMALL = {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 2}
STRANGERS = {
    "cogvideox": (
        CogVideoXTransformer3DModel,
        SMALL | {"in_channels": 4, "out_channels": 4, "time_embed_dim": 4, "text_embed_dim": 8,
                 "max_text_seq_length": 4, "sample_width": 4, "sample_height": 4, "sample_frames": 5},
        "attn1.to_q",
    ),
    "mochi": (
        MochiTransformer3DModel,
        SMALL | {"pooled_projection_dim": 8, "in_channels": 4, "text_embed_dim": 8, "time_embed_dim": 4},
        "attn1.to_q",
    ),
    "pixart": (
        PixArtTransformer2DModel,
        SMALL | {"in_channels": 4, "out_channels": 8, "cross_attention_dim": 16, "sample_size": 8,
                 "caption_channels": 8, "use_additional_conditions": False},
        "attn2.to_k",
    ),
}  # fmt: skip


def model(name: str, seed: int = 0) -> nn.Module:
    kind, config, _ = STRANGERS[name]
    torch.manual_seed(seed)
    return kind(**config).eval().requires_grad_(False)


@pytest.fixture(params=list(STRANGERS))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def base(name: str, tmp_path: Path) -> Path:
    """Its denoiser in shards."""
    folder = tmp_path / "base"
    made = model(name)
    made.save_pretrained(folder / "transformer", max_shard_size="20KB")
    index = {"_class_name": "Pipeline", "transformer": ["diffusers", type(made).__name__]}
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def lora(path: Path, name: str, begin: str) -> tuple[Path, str, Tensor]:
    """One module's LoRA, its name, and its ΔW in float64."""
    module = f"transformer_blocks.1.{STRANGERS[name][2]}"
    shape = model(name).get_submodule(module).weight.shape
    generator = torch.Generator().manual_seed(1)
    up, down = torch.randn(shape[0], RANK, generator=generator), torch.randn(RANK, shape[1], generator=generator)
    save_file({f"{begin}{module}.lora_A.weight": down, f"{begin}{module}.lora_B.weight": up}, path)
    return path, module, up.double() @ down.double()


@pytest.mark.parametrize("begin", ["transformer.", "base_model.model.", ""])
@pytest.mark.parametrize("component", ["", "transformer"])
def test_fuse_and_verify(base: Path, name: str, begin: str, component: str, tmp_path: Path, cli: Cli) -> None:
    style, module, delta = lora(tmp_path / "style.safetensors", name, begin)
    before = {key: tensor.clone() for key, tensor in model(name).state_dict().items()}
    if component:
        shutil.rmtree(base / component)
        model(name).save_pretrained(base / component)  # whole
    source, target = base / component, tmp_path / ("out.safetensors" if component else "out")
    done = cli("fuse", source, style, "--lambda", "0.5", "0", "-o", target, "--json")
    assert done.code == 0, done.err
    assert SAID in done.err
    assert any(SAID in doubt for doubt in json.loads(done.out)["doubts"])
    found = load(target)
    found = {key.removeprefix("transformer."): tensor for key, tensor in found.items()}
    assert found.keys() == before.keys()
    for key, tensor in before.items():
        wanted = tensor.double() + (0.5 * delta if key == f"{module}.weight" else 0)
        torch.testing.assert_close(found[key].double(), wanted, rtol=1e-6, atol=1e-6)
    assert cli("verify", target, "--source", source, "--source", style).code == 0


def load_file_of(folder: Path) -> dict[str, Tensor]:
    return {key: tensor for file in (folder / "transformer").glob("*.safetensors")
            for key, tensor in load_file(file).items()}  # fmt: skip


def test_it_is_said(base: Path, name: str, tmp_path: Path, cli: Cli) -> None:
    style, _, _ = lora(tmp_path / "style.safetensors", name, "transformer.")
    for source in (base, base / "transformer"):
        done = cli("inspect", source)
        assert done.code == 0 and SAID in done.out, done.err
    done = cli("fuse", base, style, "--lambda", "0.5", "0", "--dry-run", "--json")
    assert done.code == 0, done.err
    assert any(SAID in doubt for doubt in json.loads(done.out)["doubts"])


def test_extract(base: Path, name: str, tmp_path: Path, cli: Cli) -> None:
    """By diffusers' names; its own loader, where the class has one, makes the tuned weights of it."""
    style, module, _ = lora(tmp_path / "style.safetensors", name, "transformer.")
    tuned, out = tmp_path / "tuned", tmp_path / "extracted.safetensors"
    assert cli("fuse", base, style, "--lambda", "0.5", "0", "-o", tuned).code == 0
    done = cli("extract", tuned, base, "-o", out, "--rank", str(RANK), "--dtype", "fp32")
    assert done.code == 0, done.err
    assert load_file(out).keys() == {f"transformer.{module}.lora_{x}.weight" for x in "AB"}
    again = tmp_path / "again"
    assert cli("fuse", base, out, "--lambda", "1", "0", "-o", again).code == 0
    wanted = load_file_of(tuned)
    for key, tensor in load_file_of(again).items():
        torch.testing.assert_close(tensor, wanted[key], rtol=1e-5, atol=1e-5)
    made = model(name)
    if hasattr(made, "load_lora_adapter"):
        made.load_lora_adapter(load_file(out), prefix="transformer")
        made.fuse_lora()
        found = made.get_submodule(module).base_layer.weight
        torch.testing.assert_close(found, wanted[f"{module}.weight"], rtol=1e-5, atol=1e-5)
    twice = tmp_path / "twice.safetensors"
    assert cli("combine", out, "2", "--base", base, "-o", twice).code == 0
    assert load_file(twice).keys() == load_file(out).keys()


@pytest.mark.parametrize("name", ["mochi"])
def test_what_names_tell_no_home(base: Path, tmp_path: Path, cli: Cli) -> None:
    """Another program's names are not guessed, nor blocks, nor a single file's layout."""
    stranger = tmp_path / "stranger.safetensors"
    save_file({"diffusion_model.blocks.1.qkv_x.lora_up.weight": torch.ones(4, 1),
               "diffusion_model.blocks.1.qkv_x.lora_down.weight": torch.ones(1, 4)}, stranger)  # fmt: skip
    options = ("--lambda", "1", "0", "-o", tmp_path / "out")
    cli("fuse", base, stranger, *options).assert_fault(3, "have no home")
    style, _, _ = lora(tmp_path / "style.safetensors", "mochi", "transformer.")
    cli("fuse", base, style, *options, "--block-weights", "style", "B00=0").assert_fault(2, "no blocks that are known")
    cli("fuse", base, style, *options, "--layout", "single-file").assert_fault(3, "")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("case", ["known", "ControlNetModel", "a transformer"])
def test_never_where_a_family_or_another_kind_is_meant(case: str, tmp_path: Path, cli: Cli) -> None:
    folder = tmp_path / "base"
    if case == "known":  # incomplete
        made = class_of("qwen_image")(**CASES["qwen_image"].tiny)
        made.save_pretrained(folder)
        (file,) = folder.glob("*.safetensors")
        state = {key.removeprefix("transformer."): tensor for key, tensor in state_of("qwen_image").items()}
        save_file({key: tensor for key, tensor in state.items() if "img_mlp" not in key}, file)
    else:
        model("mochi").save_pretrained(folder)
        (folder / "config.json").write_text(json.dumps({"_class_name": case}))
    style = tmp_path / "style.safetensors"
    lora(style, "mochi", "transformer.")
    done = cli("fuse", folder, style, "--lambda", "1", "0", "-o", tmp_path / "out.safetensors")
    done.assert_fault(3, "of no known structure")

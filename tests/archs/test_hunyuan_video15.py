"""HunyuanVideo 1.5's single files. Oracles: names of diffusers' script that converts Tencent's, and sums in float64."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from families import families, folder, state_of, stored
from fusing import load
from safetensors.torch import load_file, save_file
from torch import Tensor

from lcmmerge.archs import identify
from lcmmerge.archs.views import SWAPPED, WHOLE, View, part
from lcmmerge.tensors import open_source

Cli = Callable[..., Any]
State = dict[str, Tensor]
NAME = "hunyuan_video15"
REFINER = ("context_embedder.token_refiner.refiner_blocks.1.", "txt_in.individual_token_refiner.blocks.1.")
TENCENT = {
    "x_embedder.proj.weight": "img_in.proj.weight",
    "time_embed.timestep_embedder.linear_2.bias": "time_in.mlp.2.bias",
    "context_embedder.proj_in.weight": "txt_in.input_embedder.weight",
    "context_embedder.time_text_embed.timestep_embedder.linear_1.weight": "txt_in.t_embedder.mlp.0.weight",
    "context_embedder.time_text_embed.text_embedder.linear_2.weight": "txt_in.c_embedder.linear_2.weight",
    "context_embedder_2.norm.bias": "byt5_in.layernorm.bias",
    "context_embedder_2.linear_3.weight": "byt5_in.fc3.weight",
    "image_embedder.norm_in.weight": "vision_in.proj.0.weight",
    "image_embedder.linear_2.weight": "vision_in.proj.3.weight",
    "image_embedder.norm_out.weight": "vision_in.proj.4.weight",
    "cond_type_embed.weight": "cond_type_embedding.weight",
    "proj_out.weight": "final_layer.linear.weight",
    f"{REFINER[0]}attn.to_out.0.weight": f"{REFINER[1]}self_attn_proj.weight",
    f"{REFINER[0]}norm_out.linear.weight": f"{REFINER[1]}adaLN_modulation.1.weight",
    "transformer_blocks.53.norm1_context.linear.weight": "double_blocks.53.txt_mod.linear.weight",
    "transformer_blocks.53.attn.to_k.bias": "double_blocks.53.img_attn_k.bias",
    "transformer_blocks.53.attn.add_v_proj.weight": "double_blocks.53.txt_attn_v.weight",
    "transformer_blocks.53.attn.norm_added_q.weight": "double_blocks.53.txt_attn_q_norm.weight",
    "transformer_blocks.53.attn.to_add_out.weight": "double_blocks.53.txt_attn_proj.weight",
    "transformer_blocks.53.ff.net.2.weight": "double_blocks.53.img_mlp.fc2.weight",
    "transformer_blocks.53.ff_context.net.0.proj.bias": "double_blocks.53.txt_mlp.fc1.bias",
}
VIEWS = {
    "norm_out.linear.weight": ("final_layer.adaLN_modulation.1.weight", SWAPPED),
    f"{REFINER[0]}attn.to_v.weight": (f"{REFINER[1]}self_attn_qkv.weight", part(2, 3, 3)),
}


@pytest.mark.parametrize("canonical", [*TENCENT, *VIEWS])
def test_tencents_names(canonical: str) -> None:
    slot = families()[NAME].keymap("single-file").slots[f"transformer.{canonical}"]
    wanted: tuple[str, View] = VIEWS.get(canonical) or (TENCENT[canonical], WHOLE)
    assert (slot.stored, slot.view) == (f"model.diffusion_model.{wanted[0]}", wanted[1])


def comfy(tencent: State) -> State:
    """As ComfyUI's files have the same numbers: q, k and v of a block's two streams in one each."""
    made: State = {}
    for key, tensor in tencent.items():
        begin, is_q, kind = key.partition("_attn_q.")
        if is_q:
            made[f"{begin}_attn_qkv.{kind}"] = torch.cat([tencent[f"{begin}_attn_{n}.{kind}"] for n in "qkv"])
        elif "_attn_k." not in key and "_attn_v." not in key:
            made[key] = tensor
    return made


def base_of(layout: str, path: Path) -> Path:
    weights = state_of(NAME)
    if layout == "folder":
        return folder(path, NAME, weights)
    single = stored(NAME, weights)
    save_file(comfy(single) if layout == "comfy" else single, path.with_suffix(".safetensors"))
    return path.with_suffix(".safetensors")


def canonical_of(layout: str, out: Path) -> State:
    """What was written, by diffusers' names: a merge's output is a base like another."""
    model = identify(open_source(out))
    tensors = load(out) if layout == "folder" else load_file(out)
    return {key: each.slot.view.take(tensors[each.slot.stored]) for key, each in model.parameters.items()}


LAYOUTS = ("folder", "tencent", "comfy")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_recognised(layout: str, tmp_path: Path) -> None:
    model = identify(open_source(base_of(layout, tmp_path / "base")))
    assert (model.arch.name, dict(model.leftovers), model.missing) == (NAME, {}, ())
    found = canonical_of(layout, base_of(layout, tmp_path / "base") if layout != "folder" else tmp_path / "base")
    assert found.keys() == state_of(NAME).keys()
    assert not [key for key, tensor in state_of(NAME).items() if not torch.equal(found[key], tensor)]


MADE = {
    "folder": ("transformer.transformer_blocks.1.attn.add_k_proj", 1),
    "tencent": ("diffusion_model.double_blocks.1.txt_attn_k", 1),
    "comfy": ("diffusion_model.double_blocks.1.txt_attn.qkv", 3),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("made", LAYOUTS)
def test_adapters_of_either_names(made: str, layout: str, tmp_path: Path, cli: Cli) -> None:
    module, parts = MADE[made]
    weights = {key: tensor.double() for key, tensor in state_of(NAME).items()}
    up, down = torch.randn(16 * parts, 2), torch.randn(2, 16)
    style = tmp_path / "style.safetensors"
    save_file({f"{module}.lora_A.weight": down, f"{module}.lora_B.weight": up}, style)
    out = tmp_path / ("out" if layout == "folder" else "out.safetensors")
    done = cli("fuse", base_of(layout, tmp_path / "base"), style, "--lambda", "0.5", "0", "-o", out)
    assert done.code == 0, done.err
    names = ["add_k_proj"] if parts == 1 else ["add_q_proj", "add_k_proj", "add_v_proj"]
    for name, rows in zip(names, up.double().chunk(parts), strict=True):
        weights[f"transformer.transformer_blocks.1.attn.{name}.weight"] += 0.5 * rows @ down.double()
    found = canonical_of(layout, out)
    for key, tensor in weights.items():
        torch.testing.assert_close(found[key].double(), tensor, rtol=1e-6, atol=1e-6, msg=key)

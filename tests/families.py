"""Every family of diffusion transformers as diffusers' own class: tiny, and with the rows that converters count on."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from accelerate import init_empty_weights
from diffusers.loaders import lora_conversion_utils, single_file_utils
from safetensors.torch import save_file
from torch import Tensor, nn

from lcmmerge.archs import Architecture, architectures, tiles
from lcmmerge.archs.transformer import Transformer

State = dict[str, Tensor]


@dataclass(frozen=True)
class Case:
    """A family. ``tiny``: a small config; ``few``: the published one with few blocks; ``converter``: diffusers' name of
    it, empty where a single file has the canonical names, None where diffusers reads no single file. ``full``: the
    published config, where it is not the class's default. ``beside``: what single files have besides, by name.
    ``family`` and ``module``: of models with more than the family's own class has, that family, and their class.
    """

    tiny: dict[str, Any]
    few: dict[str, Any]
    converter: str | None = ""
    full: dict[str, Any] = field(default_factory=dict)
    beside: tuple[str, ...] = ()
    family: str = ""
    module: str = ""


FLUX = {"num_layers": 2, "num_single_layers": 2}
SMALL = {"attention_head_dim": 8, "num_attention_heads": 2, "axes_dims_rope": (2, 2, 4)}
WAN = {"patch_size": (1, 2, 2), "num_attention_heads": 2, "attention_head_dim": 12, "in_channels": 4,
       "out_channels": 4, "text_dim": 12, "freq_dim": 8, "ffn_dim": 20}  # fmt: skip
FACE = {"latent_channels": 4, "in_channels": 12, "image_dim": 6, "motion_style_dim": 6, "motion_dim": 3,
        "motion_encoder_dim": 6, "face_encoder_hidden_dim": 4, "face_encoder_num_heads": 2,
        "motion_encoder_channel_sizes": {str(2**i): 3 for i in range(2, 10)}}  # fmt: skip
CASES = {
    "flux1": Case(
        FLUX | SMALL | {"in_channels": 4, "joint_attention_dim": 12, "pooled_projection_dim": 6,
                        "guidance_embeds": True},
        FLUX | {"guidance_embeds": True},
        "flux",
    ),
    "chroma": Case(
        FLUX | SMALL | {"in_channels": 4, "joint_attention_dim": 12, "approximator_num_channels": 8,
                        "approximator_hidden_dim": 10, "approximator_layers": 2},
        FLUX,
        "chroma",
    ),
    "flux2": Case(
        FLUX | {"in_channels": 8, "attention_head_dim": 8, "num_attention_heads": 2, "joint_attention_dim": 12,
                "timestep_guidance_channels": 8, "axes_dims_rope": (2, 2, 2, 2)},
        FLUX,
        "flux2",
    ),
    "flux3": Case(
        FLUX | {"in_channels": 8, "cond_in_channels": 8, "attention_head_dim": 8, "num_attention_heads": 2,
                "joint_attention_dim": 12, "timestep_channels": 8, "axes_dims_rope": (2, 2, 2, 2), "flow_map": True},
        FLUX | {"flow_map": True},
        "flux3",
        beside=("repa_projectors.0.weight",),
    ),
    "z_image": Case(
        {"in_channels": 4, "dim": 16, "n_layers": 2, "n_refiner_layers": 1, "n_heads": 2, "n_kv_heads": 2,
         "cap_feat_dim": 12, "axes_dims": [2, 2, 4], "axes_lens": [8, 8, 8]},
        {"n_layers": 2},
        "z_image",
        beside=("norm_final.weight",),
    ),
    "krea2": Case(
        {"in_channels": 8, "num_layers": 2, "attention_head_dim": 8, "num_attention_heads": 4, "num_key_value_heads": 2,
         "intermediate_size": 24, "timestep_embed_dim": 8, "text_hidden_dim": 16, "num_text_layers": 3,
         "text_num_attention_heads": 2, "text_num_key_value_heads": 2, "text_intermediate_size": 20,
         "axes_dims_rope": (2, 2, 4)},
        {"num_layers": 2},
        "krea2",
    ),
    "wan": Case(
        WAN | {"num_layers": 2, "image_dim": 6, "added_kv_proj_dim": 24},
        {"num_layers": 2, "image_dim": 6, "added_kv_proj_dim": 5120},
        "wan",
    ),
    "wan_vace": Case(
        WAN | {"num_layers": 3, "vace_layers": [0, 2], "vace_in_channels": 8},
        {"num_layers": 3, "vace_layers": [0, 2]},
        "wan",
        family="wan",
        module="WanVACETransformer3DModel",
    ),
    "wan_animate": Case(
        WAN | FACE | {"num_layers": 2, "inject_face_latents_blocks": 1, "added_kv_proj_dim": 24},
        {"num_layers": 2, "inject_face_latents_blocks": 1, "added_kv_proj_dim": 5120},
        "wan",
        family="wan",
        module="WanAnimateTransformer3DModel",
    ),
    "qwen_image21": Case(
        {"in_channels": 8, "out_channels": 8, "num_layers": 2, "context_in_dim": 12} | SMALL,
        {"num_layers": 2},
        "qwen_image21",
    ),
    "lumina2": Case(
        {"in_channels": 4, "hidden_size": 48, "num_layers": 2, "num_refiner_layers": 1, "num_attention_heads": 6,
         "num_kv_heads": 2, "multiple_of": 8, "axes_dim_rope": (2, 2, 4), "axes_lens": (8, 8, 8), "cap_feat_dim": 12},
        {"num_layers": 2},
        "lumina2",
        beside=("norm_final.weight",),
    ),
    "auraflow": Case(
        {"sample_size": 4, "in_channels": 4, "num_mmdit_layers": 2, "num_single_dit_layers": 2, "attention_head_dim": 8,
         "num_attention_heads": 2, "joint_attention_dim": 12, "caption_projection_dim": 16, "pos_embed_max_size": 16},
        {"num_mmdit_layers": 2, "num_single_dit_layers": 2},
        "auraflow",
    ),
    "ernie_image": Case(
        {"hidden_size": 16, "num_attention_heads": 2, "num_layers": 2, "ffn_hidden_size": 20, "in_channels": 4,
         "out_channels": 4, "text_in_dim": 12, "rope_axes_dim": (2, 2, 4)},
        {"num_layers": 2},
        "ernie_image",
    ),
    "cosmos2": Case(
        {"in_channels": 4, "out_channels": 4, "num_attention_heads": 2, "attention_head_dim": 12, "num_layers": 2,
         "text_embed_dim": 12, "adaln_lora_dim": 4, "max_size": (4, 8, 8), "extra_pos_embed_type": None},
        {"num_layers": 2, "extra_pos_embed_type": None},
        "cosmos",
    ),
    "sd3": Case(
        {"sample_size": 4, "in_channels": 4, "out_channels": 4, "num_layers": 2, "attention_head_dim": 8,
         "num_attention_heads": 2, "joint_attention_dim": 12, "caption_projection_dim": 16, "pooled_projection_dim": 6,
         "pos_embed_max_size": 4, "dual_attention_layers": (0,), "qk_norm": "rms_norm"},
        {"num_layers": 3, "dual_attention_layers": (0, 1), "qk_norm": "rms_norm"},
        "sd3",
        {"num_layers": 38, "num_attention_heads": 38, "caption_projection_dim": 2432, "qk_norm": "rms_norm"},
    ),
    "sana": Case(
        {"in_channels": 4, "out_channels": 4, "num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 2,
         "num_cross_attention_heads": 2, "cross_attention_head_dim": 8, "cross_attention_dim": 16,
         "caption_channels": 12, "sample_size": 4},
        {"num_layers": 2},
        "sana",
        beside=("pos_embed", "y_embedder.y_embedding"),
    ),
    "hunyuan_video": Case(
        FLUX | {"in_channels": 4, "out_channels": 4, "num_attention_heads": 2, "attention_head_dim": 8,
                "num_refiner_layers": 1, "text_embed_dim": 12, "pooled_projection_dim": 6, "rope_axes_dim": (2, 2, 4)},
        FLUX,
        "hunyuan_video",
    ),
    "hunyuan_video15": Case(
        {"in_channels": 5, "out_channels": 2, "num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 2,
         "num_refiner_layers": 1, "text_embed_dim": 8, "text_embed_2_dim": 6, "image_embed_dim": 8,
         "rope_axes_dim": (2, 2, 4), "use_meanflow": True},
        {"num_layers": 2},
        None,
    ),
    "minimax_h3": Case(
        {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 2, "hidden_size": 16, "num_refiner_layers": 1,
         "ffn_dim": 20, "in_channels": 4, "audio_in_channels": 4, "text_dim": 8, "freq_dim": 8,
         "time_embed_hidden_dim": 8, "time_embed_dim": 4, "rope_freq_dim": 2},
        {"num_layers": 2},
        "minimax_h3",
        beside=("rope.inv_freq",),
    ),
    "hidream": Case(
        FLUX | {"patch_size": 2, "in_channels": 4, "attention_head_dim": 8, "num_attention_heads": 2,
                "caption_channels": [12, 10], "text_emb_dim": 6, "axes_dims_rope": (4, 4), "max_resolution": (4, 4),
                "llama_layers": [0, 1]},
        FLUX | {"patch_size": 2, "in_channels": 16, "caption_channels": [4096, 4096], "llama_layers": [0, 1]},
        "hidream",
        {"patch_size": 2, "in_channels": 16, "caption_channels": [4096, 4096], "llama_layers": [0] * 48},
    ),
    "ltx2": Case(
        {"in_channels": 4, "out_channels": 4, "num_attention_heads": 2, "attention_head_dim": 8,
         "cross_attention_dim": 16, "audio_in_channels": 4, "audio_out_channels": 4, "audio_num_attention_heads": 2,
         "audio_attention_head_dim": 4,
         "audio_cross_attention_dim": 8, "num_layers": 2, "caption_channels": 12, "gated_attn": True,
         "audio_gated_attn": True, "cross_attn_mod": True, "audio_cross_attn_mod": True},
        {"num_layers": 2, "gated_attn": True, "audio_gated_attn": True},
        "ltx2",
    ),
    "ideogram4": Case(
        {"in_channels": 4, "num_layers": 2, "attention_head_dim": 8, "num_attention_heads": 2, "intermediate_size": 20,
         "adaln_dim": 6, "llm_features_dim": 12, "mrope_section": (2, 1, 1)},
        {"num_layers": 2},
    ),
    "qwen_image": Case(
        {"in_channels": 16, "out_channels": 4, "num_layers": 2, "joint_attention_dim": 12} | SMALL,
        {"num_layers": 2},
    ),
}  # fmt: skip


def families() -> dict[str, Architecture]:
    """All whose denoiser is a transformer: each must have a case. And the cases that are of the same family."""
    found = {name: arch for name, arch in architectures().items() if isinstance(arch.denoiser, Transformer)}
    return found | {name: found[case.family] for name, case in CASES.items() if case.family}


def class_of(name: str) -> Any:
    return getattr(diffusers, CASES[name].module or families()[name].denoiser.module)


def published(name: str) -> nn.Module:
    with init_empty_weights():
        return class_of(name)(**CASES[name].full)


def each_family() -> list[Any]:
    """Every family as a parameter: a few in the short tier, which have every kind of view, and all in the long one."""
    few = ("flux1", "wan", "z_image")
    return [name if name in few else pytest.param(name, marks=pytest.mark.e2e) for name in families()]


@cache
def tiny(name: str) -> nn.Module:
    """Shared: copy it before changing it."""
    model = class_of(name)(**CASES[name].tiny)
    return model.eval().requires_grad_(False)


@cache
def state_of(name: str) -> State:
    """The tiny model's weights, random, by canonical name; the component in front."""
    generator = torch.Generator().manual_seed(0)
    state = tiny(name).state_dict()
    return {f"transformer.{key}": 0.2 * torch.randn(tensor.shape, generator=generator) for key, tensor in state.items()}


def narrow(name: str) -> State:
    """Random weights with the published model's rows, one number wide: all that a converter looks at."""
    with init_empty_weights():
        state = class_of(name)(**CASES[name].few).state_dict()
    return {
        key: torch.randn(*tensor.shape[:1], *(1 for _ in tensor.shape[1:])) for key, tensor in state.items()
    }


def sized(arch: Architecture, canonical: State) -> Architecture:
    inner = [name.removeprefix("transformer.") for name in canonical]
    return replace(arch, parts=(arch.denoiser.sized(inner), *arch.parts[1:]))


def stored(name: str, canonical: State) -> State:
    """The weights as the table says that a single file has them, without what stands before their names."""
    arch = sized(families()[name], canonical)
    found: State = {}
    for key, slots in arch.keymap("single-file").stored.items():
        slots = tuple(slot for slot in slots if slot.parameter in canonical)
        if not slots:
            continue
        made_of = tiles([slot.view for slot in slots], [tuple(canonical[slot.parameter].shape) for slot in slots])
        assert made_of, key
        tensor = torch.full(made_of[0], float("nan"), dtype=canonical[slots[0].parameter].dtype)
        for slot in slots:
            slot.view.put(tensor, canonical[slot.parameter])
        found[key.removeprefix(arch.denoiser.stored)] = tensor
    return found


def converted(name: str, state: State, **options: Any) -> State:
    """What diffusers reads from such a single file. ``options``: of its converter."""
    if name == "ideogram4":
        return by_lora_converter(state)
    converter = CASES[name].converter
    called = re.compile(rf"convert_{converter}(_transformer)?(_checkpoint)?_to_diffusers")
    found = next((function for name, function in vars(single_file_utils).items() if called.fullmatch(name)), None)
    assert bool(found) == bool(converter)
    return found(dict(state), config=CASES[name].tiny, **options) if found else state


def by_lora_converter(state: State) -> State:
    """Ideogram 4, of which diffusers converts LoRAs alone: a matrix one number wide is the up of one of rank 1."""
    begin, end = "diffusion_model.", ".lora_B.weight"
    ups = {key: tensor for key, tensor in state.items() if key.startswith("layers.") and tensor.dim() == 2}
    lora = {begin + key.replace(".weight", end): tensor for key, tensor in ups.items()}
    lora |= {key.replace(end, ".lora_A.weight"): torch.ones(1, 1) for key in lora}
    found = lora_conversion_utils._convert_non_diffusers_ideogram4_lora_to_diffusers(lora)
    modules = {key.removeprefix("transformer.").removesuffix(end): t for key, t in found.items() if key.endswith(end)}
    kept = {key: tensor for key, tensor in state.items() if key not in ups}
    return kept | {f"{module}.weight": tensor for module, tensor in modules.items()}


def single_file(path: Path, name: str, canonical: State, begin: str = "model.diffusion_model.") -> Path:
    state = {begin + key: tensor.contiguous() for key, tensor in stored(name, canonical).items()}
    save_file(state | {begin + key: torch.ones(2) for key in CASES[name].beside}, path)
    return path


def folder(path: Path, name: str, canonical: State) -> Path:
    """A diffusers folder, its transformer in shards."""
    model = class_of(name)(**CASES[name].tiny)
    model.load_state_dict({key.removeprefix("transformer."): tensor for key, tensor in canonical.items()})
    model.save_pretrained(path / "transformer", max_shard_size="10KB")
    index = {"_class_name": "Pipeline", "transformer": ["diffusers", type(model).__name__]}
    (path / "model_index.json").write_text(json.dumps(index))
    return path

"""A tiny Qwen-Image, of diffusers' and transformers' own classes, in every layout that people have."""

from __future__ import annotations

import copy
import json
from functools import cache
from pathlib import Path

import torch
from diffusers import AutoencoderKLQwenImage, FlowMatchEulerDiscreteScheduler, QwenImageTransformer2DModel
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

BLOCKS = 2
INDEX = {
    "_class_name": "QwenImagePipeline",
    "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
    "text_encoder": ["transformers", "Qwen2_5_VLForConditionalGeneration"],
    "tokenizer": ["transformers", "Qwen2Tokenizer"],
    "transformer": ["diffusers", "QwenImageTransformer2DModel"],
    "vae": ["diffusers", "AutoencoderKLQwenImage"],
}


@cache
def transformer() -> QwenImageTransformer2DModel:
    """Shared: copy it before changing it."""
    model = QwenImageTransformer2DModel(
        in_channels=16,
        out_channels=4,
        num_layers=BLOCKS,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=12,
        axes_dims_rope=(2, 2, 4),
    )
    return _seeded(model)


@cache
def vae() -> AutoencoderKLQwenImage:
    sizes = {"base_dim": 4, "z_dim": 4, "dim_mult": [1, 2], "num_res_blocks": 1, "temperal_downsample": [False]}
    return _seeded(AutoencoderKLQwenImage(**sizes))


@cache
def text_encoder() -> Qwen2_5_VLForConditionalGeneration:
    text = {
        "vocab_size": 32, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
        "num_key_value_heads": 1, "rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]},
    }  # fmt: skip
    vision = {
        "depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 16,
        "fullatt_block_indexes": [0],
    }  # fmt: skip
    return _seeded(Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=vision)))


def _seeded(model: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model.eval().requires_grad_(False)


def folder(path: Path, dtype: torch.dtype = torch.float32) -> Path:
    """A diffusers folder, its transformer in shards."""
    for name, made in {"transformer": transformer(), "vae": vae(), "text_encoder": text_encoder()}.items():
        shards = {"max_shard_size": "10KB"} if name == "transformer" else {}
        copy.deepcopy(made).to(dtype).save_pretrained(path / name, **shards)
    FlowMatchEulerDiscreteScheduler().save_pretrained(path / "scheduler")
    (path / "tokenizer").mkdir()
    (path / "tokenizer" / "vocab.json").write_text("{}")
    (path / "model_index.json").write_text(json.dumps(INDEX))
    return path


def single_file(path: Path, begin: str = "model.diffusion_model.", dtype: torch.dtype = torch.float32) -> Path:
    """The transformer alone, as ComfyUI has it."""
    state = transformer().state_dict()
    save_file({begin + name: tensor.to(dtype).contiguous() for name, tensor in state.items()}, path)
    return path


TARGETS = (
    *("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0"),
    *("attn.add_q_proj", "attn.to_add_out", "img_mlp.net.2"),
)
RANK = 3
BEGINS = {"diffusers": "transformer.", "comfy": "diffusion_model.", "peft": "base_model.model."}


def lora(path: Path, dialect: str, seed: int = 1, alpha: float = 1.5) -> Path:
    """The same LoRA as published files spell it; ``lightning``, ``diffusers``, ``comfy``, ``kohya``, ``peft``."""
    factors: dict[str, tuple[Tensor, Tensor]] = {}
    generator = torch.Generator().manual_seed(seed)
    shapes = {name: tuple(tensor.shape) for name, tensor in transformer().state_dict().items()}
    for block in range(BLOCKS):
        for target in TARGETS:
            module = f"transformer_blocks.{block}.{target}"
            out, width = shapes[f"{module}.weight"]
            up, down = torch.randn(out, RANK, generator=generator), torch.randn(RANK, width, generator=generator)
            factors[module] = (0.2 * up, 0.2 * down)
    tensors = {}
    for module, (up, down) in factors.items():
        match dialect:
            case "lightning":
                tensors |= {f"{module}.lora_up.weight": up, f"{module}.lora_down.weight": down}
                tensors[f"{module}.alpha"] = torch.tensor(alpha)
            case "kohya":
                key = f"lora_unet_{module.replace('.', '_')}"
                tensors |= {f"{key}.lora_up.weight": up, f"{key}.lora_down.weight": down}
                tensors[f"{key}.alpha"] = torch.tensor(alpha)
            case "diffusers" | "comfy" | "peft":  # without alpha: the factor is in B
                key = BEGINS[dialect] + module
                tensors |= {f"{key}.lora_B.weight": up * (alpha / RANK), f"{key}.lora_A.weight": down}
    save_file(tensors, path)
    return path

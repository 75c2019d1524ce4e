"""Makes what the search's benchmark draws with: Stable Diffusion 1.5's layout, random weights, two LoRAs.

``make(size, folder, dtype)`` fills ``folder`` with ``base/`` (a diffusers folder), ``style.safetensors`` (rank 32, the
attention blocks) and ``lcm.safetensors`` (rank 64, the official LCM-LoRA's grammar and targets). Both LoRAs touch the
U-Net alone. The VAE and the text encoder have all of their names and next to no width: neither is measured.
"""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from embedded.text import tokenizer
from models import LCM_RANK, STYLE_RANK, STYLE_TARGETS, lcm_keys, lora_layout
from safetensors.torch import save_file
from sizes import SD1
from transformers import CLIPTextConfig, CLIPTextModel

SIZES: dict[str, dict[str, Any]] = {
    "small": SD1.unet | {"block_out_channels": [64, 128, 256, 256], "cross_attention_dim": 160, "sample_size": 32},
    "sd1": SD1.unet,
}
NORM = 0.3  # of ΔW, as a share of W's


def make(size: str, folder: Path, dtype: torch.dtype) -> None:
    """What is there is kept."""
    if (folder / "lcm.safetensors").exists():
        return
    torch.manual_seed(0)
    config = SIZES[size]
    unet = UNet2DConditionModel(**config)
    StableDiffusionPipeline(
        unet=unet.to(dtype),
        vae=_vae().to(dtype),
        text_encoder=_text_encoder(config["cross_attention_dim"]).to(dtype),
        tokenizer=tokenizer(),
        scheduler=DDIMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, steps_offset=1
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder / "base")
    shapes = {f"unet.{name}": tuple(parameter.shape) for name, parameter in unet.named_parameters()}
    lcm = lcm_keys(shapes)
    targets = tuple(f".{target}.weight" for target in STYLE_TARGETS)
    style = {name: key for name, key in lcm.items() if ".attentions." in name and name.endswith(targets)}
    _write_lora(folder / "style.safetensors", style, shapes, STYLE_RANK)
    _write_lora(folder / "lcm.safetensors", lcm, shapes, LCM_RANK)


def _write_lora(path: Path, keys: dict[str, str], shapes: dict[str, tuple[int, ...]], rank: int) -> None:
    """alpha = rank; torch's own init gives W the deviation 1 / √(3 · fan-in)."""
    tensors = {}
    for name, (_, shape) in lora_layout(keys, shapes, rank).items():
        if name.endswith(".alpha"):
            tensors[name] = torch.tensor(float(rank)).half()
        else:
            fan_in = prod(shape[1:])
            deviation = NORM / 3**0.5 / rank**0.5 if name.endswith(".lora_up.weight") else fan_in**-0.5
            tensors[name] = (deviation * torch.randn(shape)).half()
    save_file(tensors, path)


def _vae() -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(4, 8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        latent_channels=4,
        norm_num_groups=4,
    )


def _text_encoder(hidden: int) -> CLIPTextModel:
    words = len(tokenizer())
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=words,
            hidden_size=hidden,
            intermediate_size=hidden,
            num_hidden_layers=12,
            num_attention_heads=4,
            bos_token_id=words - 2,
            eos_token_id=words - 1,
            pad_token_id=words - 1,
        )
    )

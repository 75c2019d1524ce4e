"""The real models' parameters, name and shape, from diffusers and transformers on the meta device: no weights.

Structures and widths are those of the published configs (each repository's unet/config.json …).
"""

from __future__ import annotations

from functools import cache

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from pico import CROSS_DOWN, CROSS_UP, DOWN, UP, canonical_state, text_encoders
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from lcmmerge.archs import architectures

SD = {"block_out_channels": (320, 640, 1280, 1280)}
XL_MICRO = {"addition_embed_type": "text_time", "addition_time_embed_dim": 256, "use_linear_projection": True}
XL = XL_MICRO | {
    "block_out_channels": (320, 640, 1280),
    "down_block_types": (DOWN, CROSS_DOWN, CROSS_DOWN),
    "up_block_types": (CROSS_UP, CROSS_UP, UP),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "projection_class_embeddings_input_dim": 2816,
}
UNETS = {
    "sd1": SD | {"attention_head_dim": 8, "cross_attention_dim": 768},
    "sd2": SD
    | {"attention_head_dim": (5, 10, 20, 20), "cross_attention_dim": 1024, "use_linear_projection": True},
    "sdxl": XL | {"transformer_layers_per_block": (1, 2, 10)},
    "sdxl_refiner": XL_MICRO
    | {
        "block_out_channels": (384, 768, 1536, 1536),
        "down_block_types": (DOWN, CROSS_DOWN, CROSS_DOWN, DOWN),
        "up_block_types": (UP, CROSS_UP, CROSS_UP, UP),
        "transformer_layers_per_block": 4,
        "attention_head_dim": (6, 12, 24, 24),
        "cross_attention_dim": 1280,
        "projection_class_embeddings_input_dim": 2560,
    },
    "ssd1b": XL
    | {
        "transformer_layers_per_block": (1, 2, 4),
        "reverse_transformer_layers_per_block": ((4, 4, 10), (2, 1, 1), 1),
        "mid_block_type": "UNetMidBlock2D",
    },
    "segmind_vega": XL
    | {
        "transformer_layers_per_block": (1, 1, 2),
        "reverse_transformer_layers_per_block": ((2, 2, 2), (1, 1, 1), 1),
        "mid_block_type": "UNetMidBlock2D",
    },
}
PUBLISHED = tuple(UNETS)
# hidden size, heads
TEXT_WIDTHS = {"clip_l": (768, 12), "clip_h": (1024, 16), "clip_g": (1280, 20)}


@cache
def shapes(name: str) -> dict[str, tuple[int, ...]]:
    """Canonical parameter → shape, of the real model of this architecture."""
    arch = architectures()[name]
    with torch.device("meta"):
        parts: dict[str, torch.nn.Module] = {
            "unet": UNet2DConditionModel(**UNETS[name]),
            "vae": AutoencoderKL(
                block_out_channels=(128, 256, 512, 512),
                down_block_types=("DownEncoderBlock2D",) * 4,
                up_block_types=("UpDecoderBlock2D",) * 4,
                layers_per_block=2,
                latent_channels=4,
            ),
        }
        for encoder in text_encoders(arch):
            hidden, heads = TEXT_WIDTHS[encoder.comfy]
            config = CLIPTextConfig(
                hidden_size=hidden,
                intermediate_size=4 * hidden,
                num_hidden_layers=encoder.layers,
                num_attention_heads=heads,
                projection_dim=hidden,
            )
            model = CLIPTextModelWithProjection if encoder.projection else CLIPTextModel
            parts[encoder.name] = model(config)
    return {name: tuple(tensor.shape) for name, tensor in canonical_state(parts).items()}

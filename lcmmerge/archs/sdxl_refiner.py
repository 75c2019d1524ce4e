from dataclasses import replace

from lcmmerge.archs.base import Architecture
from lcmmerge.archs.sdxl import CLIP_G, FAMILY
from lcmmerge.archs.unet import UNet
from lcmmerge.archs.vae import VAE

ARCHITECTURE = Architecture(
    title="Stable Diffusion XL refiner",
    hub="stabilityai/stable-diffusion-xl-refiner-1.0",
    modelspec="stable-diffusion-xl-v1-refiner",
    version="sdxl_refiner_v1-0",
    size=1024,
    parts=(
        UNet(
            down=((0, 0), (4, 4), (4, 4), (0, 0)),
            mid=4,
            up=((0, 0, 0), (4, 4, 4), (4, 4, 4), (0, 0, 0)),
            linear_projection=True,
            context=1280,
            added=True,
            # kohya-ss/sd-scripts does not train it, and diffusers mistakes LDM's input_blocks.10 for its .1.
        ),
        VAE(),
        # It keeps the second of SDXL's two, and the name with it.
        replace(CLIP_G, stored="conditioner.embedders.0.model.", kohya="lora_te_"),
    ),
    family=replace(FAMILY, from_image=True),
)

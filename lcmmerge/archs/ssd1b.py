from lcmmerge.archs.base import Architecture
from lcmmerge.archs.sdxl import CLIP_G, CLIP_L, FAMILY
from lcmmerge.archs.unet import UNet
from lcmmerge.archs.vae import VAE

ARCHITECTURE = Architecture(
    title="SSD-1B",
    hub="segmind/SSD-1B",
    modelspec="segmind-stable-diffusion-1b",
    version="sdxl_base_v1-0",  # as programs sort what SDXL may draw with
    size=1024,
    parts=(
        UNet(
            down=((0, 0), (2, 2), (4, 4)),
            mid=0,
            up=((4, 4, 10), (2, 1, 1), (0, 0, 0)),
            linear_projection=True,
            context=2048,
            added=True,
            kohya_stored=True,
        ),
        VAE(),
        CLIP_L,
        CLIP_G,
    ),
    family=FAMILY,
)

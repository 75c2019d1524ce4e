from lcmmerge.archs.base import Architecture
from lcmmerge.archs.sdxl import CLIP_G, CLIP_L, FAMILY
from lcmmerge.archs.unet import UNet
from lcmmerge.archs.vae import VAE

ARCHITECTURE = Architecture(
    title="Segmind-Vega",
    hub="segmind/Segmind-Vega",
    modelspec="segmind-vega",
    parts=(
        UNet(
            down=((0, 0), (1, 1), (2, 2)),
            mid=0,
            up=((2, 2, 2), (1, 1, 1), (0, 0, 0)),
            linear_projection=True,
            context=2048,
            added=True,
        ),
        VAE(),
        CLIP_L,
        CLIP_G,
    ),
    family=FAMILY,
)

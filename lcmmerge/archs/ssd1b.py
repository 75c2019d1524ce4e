from dataclasses import replace

from lcmmerge.archs import sdxl

ARCHITECTURE = replace(
    sdxl.ARCHITECTURE,  # whose version it keeps, as programs sort what SDXL may draw with
    title="SSD-1B",
    hub="segmind/SSD-1B",
    modelspec="segmind-stable-diffusion-1b",
    parts=(
        replace(sdxl.UNET, down=((0, 0), (2, 2), (4, 4)), mid=0, up=((4, 4, 10), (2, 1, 1), (0, 0, 0))),
        *sdxl.ARCHITECTURE.parts[1:],
    ),
)

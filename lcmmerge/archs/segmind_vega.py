from dataclasses import replace

from lcmmerge.archs import sdxl

ARCHITECTURE = replace(
    sdxl.ARCHITECTURE,  # whose version it keeps, as SSD-1B does
    title="Segmind-Vega",
    hub="segmind/Segmind-Vega",
    modelspec="segmind-vega",
    parts=(
        replace(sdxl.UNET, down=((0, 0), (1, 1), (2, 2)), mid=0, up=((2, 2, 2), (1, 1, 1), (0, 0, 0))),
        *sdxl.ARCHITECTURE.parts[1:],
    ),
)

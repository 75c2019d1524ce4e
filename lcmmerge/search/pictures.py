"""What is seen of a drawing: a few of its latents decoded once, for the contact sheets and for the report."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO

import torch
from PIL import Image, features
from torch import Tensor, nn

from lcmmerge.draw.jobs import Size
from lcmmerge.draw.load import Pipeline
from lcmmerge.draw.sampling import decoded

FEWEST, MOST = 2, 6  # images of each drawing
PIXELS = 64_000_000  # of all images in a report together: some 20 MB
LOSSLESS = 4_000_000  # so many pixels are kept as they are
QUALITY = 90  # of the others
SIDE = 256  # a thumbnail's longer side, at most


@dataclass(frozen=True, slots=True)
class Shown:
    """Which images of a study are kept to be looked at.

    ``jobs``: the numbers of those that are seen of each drawing, the first and the last among them.

    ``size``: in the report.
    """

    jobs: tuple[int, ...]
    size: Size
    lossless: bool

    @classmethod
    def of(cls, jobs: Sequence[int], drawings: int, size: Size) -> Shown:
        """Of ``jobs``, at least two, as many as ``PIXELS`` allow; where they do not allow the fewest, these shrink."""
        each = size[0] * size[1] * drawings
        count = min(len(jobs), max(FEWEST, min(MOST, PIXELS // each)))
        scale = min(1.0, (PIXELS / (each * count)) ** 0.5)
        spread = tuple(jobs[round(number * (len(jobs) - 1) / (count - 1))] for number in range(count))
        return cls(spread, (round(size[0] * scale), round(size[1] * scale)), each * count <= LOSSLESS)


@dataclass(frozen=True, slots=True)
class Pictures:
    """Of one drawing. ``thumbnails``: the first and the last, for contact sheets; ``urls``: ``data:image/webp;…``."""

    thumbnails: tuple[Image.Image, ...]
    urls: tuple[str, ...]

    @classmethod
    def of(cls, pipeline: Pipeline, latents: Tensor, shown: Shown) -> Pictures:
        """``latents``: [n, C, h, w], of the chosen jobs."""
        images = decode(pipeline, latents)
        return cls(
            tuple(image.resize(_fitting(image.size)) for image in (images[0], images[-1])),
            tuple(_data_url(image.resize(shown.size), shown.lossless) for image in images),
        )


@torch.no_grad()
def decode(pipeline: Pipeline, latents: Tensor) -> Sequence[Image.Image]:
    """``latents``: [n, C, h, w], as the VAE gets them before its scaling. A VAE in float16 may overflow: in float32."""
    vae = pipeline.vae
    own = vae.dtype
    nn.Module.to(vae, torch.float32)  # diffusers' own would warn
    pixels = torch.stack(list(decoded(vae, latents.float())))
    nn.Module.to(vae, own)
    images: list[Image.Image] = pipeline.image_processor.postprocess(pixels.nan_to_num(), output_type="pil")
    return images


def _data_url(image: Image.Image, lossless: bool) -> str:
    kind = "webp" if features.check("webp") else "png" if lossless else "jpeg"
    data = BytesIO()
    image.save(data, kind, quality=QUALITY, **({"lossless": True} if lossless and kind == "webp" else {}))
    return f"data:image/{kind};base64,{b64encode(data.getvalue()).decode()}"


def _fitting(size: Size) -> Size:
    scale = min(1.0, SIDE / max(size))
    return round(size[0] * scale), round(size[1] * scale)

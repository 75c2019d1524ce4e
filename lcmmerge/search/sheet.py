"""The contact sheet: a row for each λ of the style, a column for each of the accelerator, the teacher beside them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor, nn

from lcmmerge.sample.load import Pipeline

GAP, LINE = 8, 16  # pixels
SIDE = 256  # an image's longer side, at most
MOST = 12_000  # pixels of the sheet's longer side


@dataclass(frozen=True, slots=True)
class Tile:
    """Images side by side, with a line above; ``best`` gets a frame."""

    caption: str
    images: tuple[Image.Image, ...]
    best: bool = False


@torch.no_grad()
def decode(pipeline: Pipeline, latents: Tensor) -> tuple[Image.Image, ...]:
    """``latents``: [n, C, h, w], as the VAE gets them before its scaling. A VAE in float16 may overflow: in float32."""
    vae = pipeline.vae
    own = vae.dtype
    nn.Module.to(vae, torch.float32)  # diffusers' own would warn
    scaled = latents.to(vae.device, torch.float32) / vae.config.scaling_factor
    pixels = torch.cat([vae.decode(one[None], return_dict=False)[0] for one in scaled])
    nn.Module.to(vae, own)
    images = pipeline.image_processor.postprocess(pixels.nan_to_num(), output_type="pil")
    return tuple(image.resize(_fitting(image.size)) for image in images)


def sheet(rows: Sequence[Sequence[Tile | None]]) -> bytes:
    """A PNG; None leaves a place empty."""
    tiles = [tile for row in rows for tile in row if tile]
    font = ImageFont.load_default()
    texts = max(int(font.getlength(tile.caption)) for tile in tiles)
    width = max(texts, *(sum(image.width for image in tile.images) for tile in tiles)) + GAP
    height = max(image.height for tile in tiles for image in tile.images) + LINE + GAP
    columns = max(map(len, rows))
    whole = Image.new("RGB", (columns * width + GAP, len(rows) * height + GAP), "white")
    pen = ImageDraw.Draw(whole)
    for number, row in enumerate(rows):
        for column, tile in enumerate(row):
            if tile:
                _paste(whole, pen, tile, GAP + column * width, GAP + number * height)
    whole.thumbnail((MOST, MOST))
    data = BytesIO()
    whole.save(data, "png")
    return data.getvalue()


def _paste(whole: Image.Image, pen: ImageDraw.ImageDraw, tile: Tile, left: int, top: int) -> None:
    pen.text((left, top), tile.caption, fill="black", font=ImageFont.load_default())
    right = left
    for image in tile.images:
        whole.paste(image, (right, top + LINE))
        right += image.width
    if tile.best:
        bottom = top + LINE + max(image.height for image in tile.images)
        pen.rectangle((left - 3, top + LINE - 3, right + 2, bottom + 2), outline="red", width=3)


def _fitting(size: tuple[int, int]) -> tuple[int, int]:
    scale = min(1.0, SIDE / max(size))
    return round(size[0] * scale), round(size[1] * scale)

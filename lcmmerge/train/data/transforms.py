"""From an image file to pixels: the shorter side resized, a square cut out."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from lcmmerge.errors import FormatError
from lcmmerge.train.data.base import TrainingExample, draws

LONGEST = 100  # times the shorter side
SKIP = "replace or remove it, or go on without such images by --skip-bad"


@dataclass(frozen=True, slots=True)
class Seen:
    """What a network sees of an example: ``pixels`` [3, H, W] float32 in [−1, 1], ``sizes`` [6].

    ``sizes`` are SDXL's micro-conditioning, in pixels (https://arxiv.org/abs/2307.01952, section 2.2): original height
    and width, the crop's top and left in the resized image, target height and width.
    """

    name: str
    caption: str
    pixels: Tensor
    sizes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Transform:
    """How an image becomes a square of the training's resolution.

    ``resolution``: the square's side. ``crop``: ``centre`` or ``random``. ``flip``: mirror half of them.
    """

    resolution: int
    crop: str = "centre"
    flip: bool = False

    def see(self, example: TrainingExample, seed: int, number: int) -> Seen:
        """What is random depends on ``(seed, number)`` alone. Raises FormatError for what is no readable image."""
        image, side = read(example), self.resolution
        height, width = image.height, image.width
        if max(height, width) > LONGEST * min(height, width):
            raise FormatError(f"{example.name}: {width} by {height} pixels are no picture", SKIP)
        scale = side / min(height, width)
        resized = (max(side, round(width * scale)), max(side, round(height * scale)))
        image = image.resize(resized, Image.Resampling.LANCZOS)
        draw = draws(seed, number, "view")
        if self.flip and draw.random() < 0.5:
            image = ImageOps.mirror(image)
        free = (image.height - side, image.width - side)
        top, left = (int(draw.random() * (n + 1)) if self.crop == "random" else n // 2 for n in free)
        cut = np.array(image.crop((left, top, left + side, top + side)))
        pixels = torch.from_numpy(cut).permute(2, 0, 1).float() / 127.5 - 1
        return Seen(example.name, example.caption, pixels, (height, width, top, left, side, side))


def read(example: TrainingExample) -> Image.Image:
    """In RGB, upright; what is transparent is white. Raises FormatError."""
    source = example.source()
    try:
        if isinstance(source, Path) and source.is_fifo():  # opening it would wait for a writer
            raise ValueError("a pipe")
        with Image.open(source if isinstance(source, Path) else io.BytesIO(source)) as file:
            image = ImageOps.exif_transpose(file)
            if image.mode[0] in "IF":
                raise ValueError(f"{image.mode} pixels, which 8 bits do not hold")  # PIL would clip them to white
            if image.has_transparency_data:
                image = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
            return image.convert("RGB")
    except Exception as error:  # PIL's decoders raise OSError, SyntaxError, ValueError, struct.error and more
        reason = getattr(error, "strerror", None) or str(error).partition(" <")[0].partition(" '")[0]
        raise FormatError(f"{example.name}: not an image that can be read ({reason})", SKIP) from None

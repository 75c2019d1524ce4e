"""Small images with captions, as training data come: folders, and pipelines' parts to encode them with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from pico import pico
from PIL import Image

from lcmmerge.train.conditioning import TextEncoders


def picture(seed: int, width: int = 24, height: int = 18) -> Image.Image:
    """Smooth noise: no two are alike, and resizing keeps what tells them apart."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def folder_of(path: Path, count: int, **size: int) -> Path:
    """``image00.png`` and ``image00.txt`` ("picture 0") and so on."""
    path.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        picture(number, **size).save(path / f"image{number:02}.png")
        (path / f"image{number:02}.txt").write_text(f"picture {number}\n", "utf-8")
    return path


def encoder_of(name: str) -> TextEncoders:
    """Over the pico's own modules."""
    return TextEncoders(pico(name).pipeline)

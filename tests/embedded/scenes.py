"""Pictures of one handwritten digit, 64 × 64: where, how large, in which colours and strokes is left to chance.

The digits are scikit-learn's (UCI "Optical Recognition of Handwritten Digits", 8 × 8, 17 grey levels). A *look* is a
distribution of pictures: ``everything`` is what the base learns, the others are the styles, each a modest shift of it.
A caption names the digit alone, so that one caption has many, very different pictures.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import Generator, Tensor
from torch.nn.functional import affine_grid, avg_pool2d, grid_sample, interpolate, pad

SIZE = 64
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
HELD_OUT = 450  # handwritten digits that only the judge's test and the reference pictures see
ORANGE, BLUE = (1.0, 0.55, 0.1), (0.1, 0.45, 1.0)
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601

Range = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Look:
    """Ranges of uniform draws (saturation, value in 0…1) and probabilities.

    All colours lie between grey and either orange or blue, as four latent channels hold no more at this size:
    ``ground_warm`` and ``ink_warm`` are how often it is orange.
    ``hollow``, ``glowing``, ``soft``: how often a stroke is only its outline, has a halo, has blurred edges;
    ``uneven``: how often the ground is cloudy. ``core``, ``dust``, ``shadow`` are strengths that only
    styles use: a white-hot middle, gaps in the stroke, a shadow on the ground.
    """

    ground_warm: float = 0.5
    ground_saturation: Range = (0, 1)
    ground_value: Range = (0, 1)
    ink_warm: float = 0.5
    ink_saturation: Range = (0, 1)
    ink_value: Range = (0, 1)
    contrast: float = 0.25
    hollow: float = 0.2
    glowing: float = 0.25
    soft: float = 0.25
    uneven: float = 0.5
    core: float = 0.0
    dust: float = 0.0
    shadow: float = 0.0


EVERYTHING = Look()
STYLES = {
    "neon": replace(
        EVERYTHING,
        ground_value=(0.02, 0.2), ink_saturation=(0.7, 1), ink_value=(0.85, 1),
        hollow=0.0, glowing=1.0, soft=0.0, core=1.0,
    ),
    "chalk": replace(
        EVERYTHING,
        ground_warm=0.2, ground_saturation=(0.1, 0.5), ground_value=(0.1, 0.4),
        ink_saturation=(0, 0.35), ink_value=(0.8, 1), hollow=0.0, glowing=0.0, soft=1.0, uneven=1.0, dust=0.6,
    ),
    "paper": replace(
        EVERYTHING,
        ground_warm=0.9, ground_saturation=(0.05, 0.35), ground_value=(0.85, 1),
        ink_saturation=(0.4, 1), ink_value=(0.05, 0.6), hollow=0.5, glowing=0.0, soft=0.0, uneven=0.3, shadow=0.7,
    ),
}  # fmt: skip


@cache
def strokes(held_out: bool) -> tuple[Tensor, Tensor]:
    """scikit-learn's digits, one part for training, the other kept back: grey [n, 1, 8, 8] in 0…1, digit [n]."""
    from sklearn.datasets import load_digits  # type: ignore[import-untyped]

    digits = load_digits()
    order = torch.randperm(len(digits.target), generator=Generator().manual_seed(0))
    chosen = order[:HELD_OUT] if held_out else order[HELD_OUT:]
    grey = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16
    return grey[chosen], torch.tensor(digits.target)[chosen]


def caption(digit: int) -> str:
    return f"a {WORDS[digit]}"


def draw(look: Look, count: int, seed: int, held_out: bool = False) -> tuple[Tensor, Tensor]:
    """``count`` pictures [n, 3, 64, 64] in −1…1 and their digits [n]; the same for the same seed."""
    dice = Generator().manual_seed(seed)
    grey, digits = strokes(held_out)
    chosen = torch.randint(len(digits), (count,), generator=dice)
    height = _placed(grey[chosen], dice)

    ground, ink = _colours(look, count, dice)
    other = (ground * _uniform((0.6, 1.4), (count, 1), dice)).clamp(0, 1)
    uneven = _chance(look.uneven, count, dice)[..., None, None]
    mix = _clouds(count, dice) * uneven
    picture = ground[..., None, None] * (1 - mix) + other[..., None, None] * mix

    threshold = _uniform((0.3, 0.55), (count, 1, 1, 1), dice)
    soft = _chance(look.soft, count, dice)[..., None, None]
    edge = 0.05 + 0.13 * soft
    solid = torch.sigmoid((height - threshold) / edge)
    inside = torch.sigmoid((height - threshold - 0.28) / edge)
    hollow = _chance(look.hollow, count, dice)[..., None, None]
    alpha = solid - hollow * inside
    alpha = alpha * (1 - look.dust * _clouds(count, dice, cells=12))

    shadow = torch.roll(solid - hollow * inside, (3, 3), (2, 3)) * look.shadow * 0.6
    picture = picture * (1 - shadow)
    glow = _chance(look.glowing, count, dice) * _uniform((0.4, 0.9), (count, 1), dice)
    halo = (_blurred(solid, 9) * 1.3).clamp(0, 1) * glow[..., None, None]
    colour = ink[..., None, None]
    picture = picture + (colour - picture) * halo
    picture = picture + (colour - picture) * alpha
    picture = picture + (1 - picture) * look.core * inside
    return picture * 2 - 1, digits[chosen]


def _placed(grey: Tensor, dice: Generator) -> Tensor:
    """Ink height [n, 1, 64, 64] in about 0…1: the 8 × 8 digit at random size, place and slant."""
    count = len(grey)
    scale = _uniform((0.5, 0.85), (count,), dice)  # height of the digit in pictures
    slant = _uniform((-0.3, 0.3), (count,), dice)
    room = 0.97 - scale
    x, y = (_uniform((-1, 1), (count,), dice) * room for _ in range(2))
    inverse = torch.zeros(count, 2, 3)
    inverse[:, 0, 0] = 1 / scale
    inverse[:, 0, 1] = slant / scale
    inverse[:, 0, 2] = -(x + slant * y) / scale
    inverse[:, 1, 1] = 1 / scale
    inverse[:, 1, 2] = -y / scale
    fine = interpolate(pad(grey, (1, 1, 1, 1)), scale_factor=4, mode="bicubic", align_corners=False)
    return grid_sample(
        fine, affine_grid(inverse * 0.8, [count, 1, SIZE, SIZE], align_corners=False), align_corners=False
    )


def _colours(look: Look, count: int, dice: Generator) -> tuple[Tensor, Tensor]:
    """Ground and ink [n, 3]; of eight inks the first that stands out from the ground."""
    ground = _rgb(look.ground_warm, look.ground_saturation, look.ground_value, (count, 1), dice)
    inks = _rgb(look.ink_warm, look.ink_saturation, look.ink_value, (count, 8), dice)
    difference = ((inks - ground) @ torch.tensor(LUMA)).abs()
    chosen = (difference > look.contrast).float() + difference * 1e-3
    first = chosen - torch.arange(8) * 1e-2
    return ground[:, 0], inks[torch.arange(count), first.argmax(1)]


def _rgb(warm: float, saturation: Range, value: Range, shape: tuple[int, int], dice: Generator) -> Tensor:
    """Random colours [*shape, 3] in 0…1."""
    s, v = (_uniform(limits, (*shape, 1), dice) for limits in (saturation, value))
    hue = torch.where(torch.rand((*shape, 1), generator=dice) < warm, torch.tensor(ORANGE), torch.tensor(BLUE))
    return v * (1 - s + s * hue)


def _clouds(count: int, dice: Generator, cells: int = 3) -> Tensor:
    """Smooth noise [n, 1, 64, 64] in 0…1."""
    noise = torch.rand(count, 1, cells, cells, generator=dice)
    return interpolate(noise, SIZE, mode="bicubic", align_corners=False).clamp(0, 1)


def _blurred(image: Tensor, width: int) -> Tensor:
    for _ in range(2):
        image = avg_pool2d(image, width, 1, width // 2, count_include_pad=False)
    return image


def _uniform(limits: Range, shape: tuple[int, ...], dice: Generator) -> Tensor:
    low, high = limits
    return low + (high - low) * torch.rand(shape, generator=dice)


def _chance(probability: float, count: int, dice: Generator) -> Tensor:
    """[n, 1], each 1 with this probability, else 0."""
    return (torch.rand(count, 1, generator=dice) < probability).float()

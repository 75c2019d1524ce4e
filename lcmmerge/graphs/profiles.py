"""Optimisation profiles: the sizes that engines are built for, as shapes of every graph's inputs.

A graph takes any multiple of 8 pixels. An engine for one size alone is the fastest, and one for a range is built once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lcmmerge.graphs.components import PipelinePart, Port

DYNAMIC = "dynamic"
MOST_IMAGES = 4
WHOLE = "pipeline"
BY_IMAGE = ("vae", WHOLE)  # begin so: their batch is images, with guidance or without
Range = tuple[int, int, int]  # least, usual, most


@dataclass(frozen=True, slots=True)
class Profile:
    """The sizes that an engine is built for. ``images`` at once, and their ``width`` and ``height`` in pixels."""

    name: str
    images: Range
    width: Range
    height: Range

    @property
    def static(self) -> bool:
        return all(least == most for least, _, most in (self.images, self.width, self.height))


@dataclass(frozen=True, slots=True)
class Facts:
    """Of the model: ``pixels`` per latent, ``tokens`` per prompt, ``passes`` of the U-Net per image and step.

    There are two passes under classifier-free guidance, which asks about the negative prompt too.
    """

    native: tuple[int, int]
    pixels: int
    tokens: int
    passes: int


def profiles(facts: Facts, statics: Iterable[tuple[int, int]] = ()) -> Iterator[Profile]:
    """The dynamic one, from half to one and a half of the native size, and one for each static size (width, height)."""
    width, height = facts.native
    yield Profile(DYNAMIC, (1, 1, MOST_IMAGES), _around(width, facts.pixels), _around(height, facts.pixels))
    for width, height in dict.fromkeys((facts.native, *statics)):
        yield Profile(f"{width}x{height}", (1, 1, 1), (width,) * 3, (height,) * 3)


def _around(usual: int, multiple: int) -> Range:
    return tuple(max(part // (2 * multiple), 1) * multiple for part in (usual, 2 * usual, 3 * usual))  # type: ignore[return-value]


def as_dict(profile: Profile, components: Iterable[PipelinePart], facts: Facts) -> dict[str, Any]:
    """JSON-ready. ``shapes``: component → input → its least, usual and most shape, of the inputs that vary."""
    return {
        "static": profile.static,
        "images": list(profile.images),
        "width": list(profile.width),
        "height": list(profile.height),
        "shapes": {
            component.name: _shapes(component.inputs, _ranges(profile, component.name, facts))
            for component in components
        },
    }


def whole_shapes(profile: Profile, inputs: Mapping[str, Sequence[int | str]], facts: Facts) -> dict[str, Any]:
    """The same of a graph that is a whole pipeline: input → dims, input → shapes."""
    return _shapes((Port(name, tuple(dims)) for name, dims in inputs.items()), _ranges(profile, WHOLE, facts))


def _ranges(profile: Profile, component: str, facts: Facts) -> Mapping[str, Range]:
    """What a port's dims may be. Any guidance may be asked of a dynamic engine."""
    least, usual, most = profile.images
    passes = 1 if component.startswith(BY_IMAGE) else facts.passes
    if not component.startswith(BY_IMAGE):
        most = least * passes if profile.static else 2 * most
        least, usual = (least * passes if profile.static else least), usual * passes
    return {
        "batch": (least, usual, most),
        "sequence": (facts.tokens,) * 3,
        "height": profile.height,
        "width": profile.width,
        "latent_height": tuple(side // facts.pixels for side in profile.height),  # type: ignore[dict-item]
        "latent_width": tuple(side // facts.pixels for side in profile.width),  # type: ignore[dict-item]
    }


def _shapes(ports: Iterable[Port], ranges: Mapping[str, Range]) -> dict[str, list[list[int]]]:
    return {
        port.name: [[ranges[dim][end] if isinstance(dim, str) else dim for dim in port.dims] for end in range(3)]
        for port in ports
        if port.dynamic
    }

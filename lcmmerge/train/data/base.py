"""What data are: examples by number, in an order that nothing but a seed decides.

Number k of a training stands for the same example, crop, noise and dropped caption whenever it is read: a resumed run
reads what an unbroken one would.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, Generic, Protocol, Self, TypeVar

import torch
from torch import Tensor

from lcmmerge.errors import FormatError

Item = TypeVar("Item")
Item_co = TypeVar("Item_co", covariant=True)
IMAGES = ("png", "jpg", "jpeg", "webp", "bmp")


@dataclass(frozen=True, slots=True)
class TrainingExample:
    """An image and its caption. ``name``: what messages call it. ``source``: the image file, or what is in one."""

    name: str
    caption: str
    source: Callable[[], Path | bytes]


@dataclass(frozen=True, slots=True)
class Options:
    """How examples are read from data.

    ``caption``: one for all images, instead of their own. ``split`` and the columns: where data have such.
    """

    caption: str | None = None
    image_column: str = "image"
    text_column: str = "text"
    split: str = "train"

    def caption_of(self, name: str, own: object, cure: str) -> str:
        """Raises FormatError where there is none, or it is empty."""
        if self.caption is not None:
            return self.caption
        if not isinstance(own, str) or not own.strip():
            raise FormatError(f"{name}: has no caption", f"{cure}, or give one for all with --caption")
        return own.strip()


class Data(Protocol[Item_co]):
    """Iterating gives each example once, in stored order."""

    @property
    def name(self) -> str: ...

    def __iter__(self) -> Iterator[Item_co]: ...

    def examples(self, seed: int, numbers: Iterable[int]) -> Iterator[Item_co]:
        """Those of the ascending ``numbers``. The first epoch has 0 to n − 1, in an order of its own, and so on."""
        ...

    def split(self, count: int, seed: int) -> tuple[Data[Item_co], Data[Item_co]]:
        """All but ``count`` examples, for training, and these, for validation. Raises FormatError."""
        ...


@dataclass(frozen=True, slots=True)
class DataKind:
    """A kind of data. ``accepts``: whether a path or reference is of this kind."""

    help: str
    accepts: Callable[[str], bool]
    open: Callable[[str, Options], Data[Any]]


@dataclass(frozen=True, slots=True)
class Indexed(Generic[Item]):
    """Data that ``get`` reads by index; ``rows`` are the indices that count. Raises FormatError without any."""

    name: str
    get: Callable[[int], Item]
    rows: Sequence[int]

    def __post_init__(self) -> None:
        if not self.rows:
            raise empty(self.name)

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Item]:
        return map(self.get, self.rows)

    def examples(self, seed: int, numbers: Iterable[int]) -> Iterator[Item]:
        for number in numbers:
            epoch, place = divmod(number, len(self.rows))
            yield self.get(self.rows[int(order(seed, epoch, len(self.rows))[place])])

    def split(self, count: int, seed: int) -> tuple[Self, Self]:
        """The last ``count`` of a permutation are for validation."""
        if count >= len(self.rows):
            raise too_few(self.name, len(self.rows), count)
        shuffled = [self.rows[int(place)] for place in order(seed, 0, len(self.rows), purpose="split")]
        first = len(shuffled) - count
        return replace(self, rows=sorted(shuffled[:first])), replace(self, rows=shuffled[first:])


def number_of(*parts: int | str) -> int:
    """A seed of 63 bits, the same in every process and Python."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "big") >> 1


def draws(seed: int, number: int, purpose: str) -> random.Random:
    """Random numbers that belong to one example for one purpose."""
    return random.Random(number_of(seed, number, purpose))


@lru_cache(maxsize=4)
def order(seed: int, epoch: int, count: int, purpose: str = "order") -> Tensor:
    """A permutation of 0 … count − 1, [count] int64."""
    generator = torch.Generator().manual_seed(number_of(seed, epoch, purpose))
    return torch.randperm(count, generator=generator)


def grouped(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Lists of ``size``; the last may be shorter."""
    rest = iter(items)
    return iter(lambda: list(islice(rest, size)), [])


def empty(name: str) -> FormatError:
    return FormatError(f"{name}: holds no examples", f"name data with images: {', '.join(IMAGES)}")


def too_few(name: str, found: int, count: int) -> FormatError:
    return FormatError(f"{name}: {found} examples, and {count} are asked for validation", "ask for fewer")

"""Tar shards, streamed: files of one name and several suffixes are one example (``0001.jpg``, ``0001.txt``).

Format: https://github.com/webdataset/webdataset. A pattern (``data/*.tar``), a range (``{000..099}.tar``), or an
https:// address of either kind but the first.
"""

from __future__ import annotations

import glob
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from lcmmerge.distill.data.base import (
    IMAGES,
    Data,
    Example,
    Indexed,
    Kind,
    Options,
    empty,
    grouped,
    order,
    require,
    too_few,
)
from lcmmerge.errors import FormatError, LcmMergeError, NotFoundError

BLOCK = 256  # examples that are shuffled among each other, held in memory as they are stored
REMOTE = ("https://", "http://")


@dataclass(frozen=True, slots=True)
class Shards:
    """Every epoch has the shards in an order of its own, and blocks of ``BLOCK`` examples in one of theirs.

    ``without``: names of the examples that are kept for validation.
    """

    name: str
    places: tuple[str, ...]
    options: Options
    without: frozenset[str] = frozenset()

    def __iter__(self) -> Iterator[Example]:
        return self._stored(self.places)

    def examples(self, seed: int, numbers: Iterable[int]) -> Iterator[Example]:
        """Those of the ascending ``numbers``; what lies between is read and not decoded.

        How many there are is known after the first epoch: to begin in a later one, all are read once and then the
        part that is skipped.
        """
        wanted = iter(numbers)
        number = next(wanted, None)
        epoch = first = 0
        while number is not None:
            end = first
            for end, example in enumerate(self._epoch(seed, epoch), first + 1):
                if end - 1 == number:
                    yield example
                    if (number := next(wanted, None)) is None:
                        return
            if end == first:
                raise empty(self.name)
            epoch = number // (end - first)
            first = epoch * (end - first)

    def split(self, count: int, seed: int) -> tuple[Data[Example], Data[Example]]:
        """The first ``count`` as they are stored are for validation, and stay in memory."""
        held = list(islice(self, count + 1))
        if len(held) <= count:
            raise too_few(self.name, len(held), count)
        names = frozenset(example.name for example in held[:count])
        return replace(self, without=names), Indexed(self.name, held.__getitem__, range(count))

    def _epoch(self, seed: int, epoch: int) -> Iterator[Example]:
        places = [self.places[int(place)] for place in order(seed, epoch, len(self.places), purpose="shards")]
        for number, block in enumerate(grouped(self._stored(places), BLOCK)):
            for place in order(seed, epoch, len(block), purpose=f"block {number}"):
                yield block[int(place)]

    def _stored(self, places: Iterable[str]) -> Iterator[Example]:
        found = (example for place in places for example in _shard(place, self.options))
        return (example for example in found if example.name not in self.without)


def _shard(place: str, options: Options) -> Iterator[Example]:
    """A local file by its whole path: to the library, ``pipe:rm x.tar`` is a command. Raises FormatError."""
    url = place if place.startswith(REMOTE) else str(Path(place).absolute())
    samples = require("webdataset.tariterators").tarfile_samples([{"url": url}])
    try:
        for sample in samples:
            yield _example(f"{place}:{sample['__key__']}", sample, options)
    except LcmMergeError:
        raise
    except Exception as error:  # the library hands on tarfile's, its own ValueError, and a transfer's
        reason = str(error.args[0] if error.args else error).partition("\n")[0]
        raise FormatError(f"{place}: cannot be read ({reason})", "fetch or pack it again") from None


def _example(name: str, sample: Mapping[str, Any], options: Options) -> Example:
    image = next((sample[suffix] for suffix in IMAGES if suffix in sample), None)
    if image is None:
        raise FormatError(f"{name}: has no image", f"one of {', '.join(IMAGES)} for each name")
    return Example(name, options.caption_of(name, _caption(sample, options), "add a .txt for it"), lambda: image)


def _caption(sample: Mapping[str, Any], options: Options) -> object:
    for suffix in ("txt", "caption"):
        if suffix in sample:
            return sample[suffix].decode("utf-8", "replace")
    entry = json.loads(sample.get("json", b"{}"))
    return entry.get(options.text_column, entry.get("caption"))


def _open(reference: str, options: Options) -> Data[Example]:
    require("webdataset")
    expanded = list(require("braceexpand").braceexpand(reference))
    if reference.startswith(REMOTE):
        return Shards(reference, tuple(expanded), options)
    places = [place for pattern in expanded for place in _files(pattern)]
    return Shards(reference, tuple(places), options)


def _files(pattern: str) -> list[str]:
    if found := [place for place in sorted(glob.glob(pattern)) if Path(place).is_file()]:  # noqa: PTH207
        return found
    raise NotFoundError(f"{pattern}: no such shard", "a pattern or a range of local files, or https:// addresses")


DATA = Kind("tar shards: data/*.tar, {000..099}.tar", lambda reference: reference.endswith(".tar"), _open)

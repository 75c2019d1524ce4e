"""Tar shards, streamed by the library ``datasets``: files of one name are one example (``0001.jpg``, ``0001.txt``).

Format: https://huggingface.co/docs/hub/datasets-webdataset. A pattern (``data/*.tar``), a range (``{000..099}.tar``),
or an https:// address of either kind but the first.
"""

from __future__ import annotations

import glob
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from lcmmerge.errors import FormatError, LcmMergeError, NotFoundError
from lcmmerge.train.data.base import (
    IMAGES,
    Data,
    DataKind,
    Indexed,
    Options,
    TrainingExample,
    empty,
    grouped,
    order,
    too_few,
)

BLOCK = 256  # examples that are shuffled among each other, held in memory as they are stored
REMOTE = ("https://", "http://")
RANGE = re.compile(r"\{(\d{1,9})\.\.(\d{1,9})\}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Shards:
    """Every epoch has the shards in an order of its own, and blocks of ``BLOCK`` examples in one of theirs.

    ``without``: names of the examples that are kept for validation.
    """

    name: str
    places: tuple[str, ...]
    options: Options
    without: frozenset[str] = frozenset()

    def __iter__(self) -> Iterator[TrainingExample]:
        return self._stored(self.places)

    def examples(self, seed: int, numbers: Iterable[int]) -> Iterator[TrainingExample]:
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

    def split(self, count: int, seed: int) -> tuple[Data[TrainingExample], Data[TrainingExample]]:
        """The first ``count`` as they are stored are for validation, and stay in memory."""
        held = list(islice(self, count + 1))
        if len(held) <= count:
            raise too_few(self.name, len(held), count)
        names = frozenset(example.name for example in held[:count])
        return replace(self, without=names), Indexed(self.name, held.__getitem__, range(count))

    def _epoch(self, seed: int, epoch: int) -> Iterator[TrainingExample]:
        places = [self.places[int(place)] for place in order(seed, epoch, len(self.places), purpose="shards")]
        for number, block in enumerate(grouped(self._stored(places), BLOCK)):
            for place in order(seed, epoch, len(block), purpose=f"block {number}"):
                yield block[int(place)]

    def _stored(self, places: Iterable[str]) -> Iterator[TrainingExample]:
        found = (example for place in places for example in _shard(place, self.options))
        return (example for example in found if example.name not in self.without)


def _shard(place: str, options: Options) -> Iterator[TrainingExample]:
    """A local file by its whole path, in which nothing is a pattern any more. Raises FormatError."""
    import datasets

    datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False  # it would ask a server, also for files on this disk
    url = place if place.startswith(REMOTE) else glob.escape(str(Path(place).absolute()))
    try:
        rows = datasets.load_dataset(
            "webdataset", data_files=[url], split="train", streaming=True, features=_features(datasets, options)
        )
        for row in rows:
            yield _example(f"{place}:{row['__key__']}", row, options)
    except LcmMergeError:
        raise
    except Exception as error:  # the library hands on tarfile's, its decoders', and a transfer's
        reason = str(error.args[0] if error.args else error).partition("\n")[0]
        raise FormatError(f"{place}: cannot be read ({reason})", "fetch or pack it again") from None


def _features(datasets: Any, options: Options) -> Any:
    """What is read of an example, by suffix: told, the library does not guess it from the first ones."""
    text = datasets.Value("string")
    images = {suffix: datasets.Image(decode=False) for suffix in IMAGES}
    entry = {options.text_column: text, "caption": text}
    return datasets.Features(
        {"__key__": text, **images, "txt": text, "caption": datasets.Value("binary"), "json": entry}
    )


def _example(name: str, row: Mapping[str, Any], options: Options) -> TrainingExample:
    image = next((row[suffix]["bytes"] for suffix in IMAGES if row[suffix] is not None), None)
    if image is None:
        raise FormatError(f"{name}: has no image", f"one of {', '.join(IMAGES)} for each name")
    return TrainingExample(name, options.caption_of(name, _caption(row, options), "add a .txt for it"), lambda: image)


def _caption(row: Mapping[str, Any], options: Options) -> object:
    if row["txt"] is not None:
        return row["txt"]
    if row["caption"] is not None:
        return row["caption"].decode("utf-8", "replace")
    entry = row["json"] or {}
    return entry.get(options.text_column) or entry.get("caption")


def _open(reference: str, options: Options) -> Data[TrainingExample]:
    expanded = _expanded(reference)
    if reference.startswith(REMOTE):
        return Shards(reference, tuple(expanded), options)
    places = [place for pattern in expanded for place in _files(pattern)]
    return Shards(reference, tuple(places), options)


def _expanded(pattern: str) -> Iterator[str]:
    """``{008..010}.tar`` is 008.tar, 009.tar and 010.tar."""
    if not (found := RANGE.search(pattern)):
        yield pattern
        return
    first, last = found.groups()
    for number in range(int(first), int(last) + 1):
        yield from _expanded(f"{pattern[: found.start()]}{number:0{len(first)}}{pattern[found.end() :]}")


def _files(pattern: str) -> list[str]:
    if found := [place for place in sorted(glob.glob(pattern)) if Path(place).is_file()]:  # noqa: PTH207
        return found
    raise NotFoundError(f"{pattern}: no such shard", "a pattern or a range of local files, or https:// addresses")


DATA = DataKind("tar shards: data/*.tar, {000..099}.tar", lambda reference: reference.endswith(".tar"), _open)

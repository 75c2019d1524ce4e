"""What ``--encode-only`` wrote: latents' posteriors and encoded captions, so that a training needs neither encoder.

A folder with a manifest, ``blank.safetensors`` (∅: ``hidden`` [1, tokens, width] and, of SDXL, ``pooled`` [1, p]), and
shards of n rows: ``mean`` and ``std`` [n, C, h, w], scaled; ``sizes`` [n, 6]; ``text`` [n], the row of ``hidden``
[captions, tokens, width] and ``pooled`` [captions, p] that holds the row's caption. Names and captions are metadata.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lcmmerge.errors import FormatError
from lcmmerge.refs.files import read_object
from lcmmerge.train.batch import Conditioning
from lcmmerge.train.data.base import Data, DataKind, Indexed, Options

MANIFEST = "lcmmerge-encoded.json"
BLANK = "blank.safetensors"
VERSION = 1


@dataclass(frozen=True, slots=True)
class EncodedManifest:
    """What encoded data say of themselves.

    ``settings``: what the numbers depend on: the model's hash, resolution, crop and so on.

    ``shards``: the rows of each; None while they are being written.
    """

    settings: Mapping[str, Any]
    shards: tuple[int, ...] | None = None
    version: int = VERSION

    def text(self) -> str:
        return json.dumps(asdict(self), indent=2, sort_keys=True, ensure_ascii=False) + "\n"

    @classmethod
    def read(cls, folder: Path) -> EncodedManifest:
        """Raises FormatError."""
        path = folder / MANIFEST
        try:
            manifest = cls(**read_object(path))
            manifest = replace(manifest, settings=dict(manifest.settings), shards=_counts(manifest.shards))
        except (OSError, ValueError, TypeError):
            raise FormatError(f"{path}: cannot be read", "encode again, into an empty folder") from None
        if manifest.version != VERSION:
            raise FormatError(f"{path}: of version {manifest.version}, known is {VERSION}", "encode again")
        return manifest


def _counts(stored: object) -> tuple[int, ...] | None:
    if stored is None:
        return None
    if not isinstance(stored, list) or not all(type(count) is int and count >= 0 for count in stored):
        raise ValueError("no counts")
    return tuple(stored)


@dataclass(frozen=True, slots=True)
class EncodedExample:
    """An example: ``mean``, ``std`` [C, h, w]; ``hidden`` [tokens, width], ``pooled`` [p] or None; ``sizes`` [6]."""

    name: str
    caption: str
    mean: Tensor
    std: Tensor
    hidden: Tensor
    pooled: Tensor | None
    sizes: Tensor


@dataclass(frozen=True, slots=True)
class Posteriors:
    """A batch before its noise: ``mean``, ``std`` [B, C, h, w]; ``prompt`` and ``blank`` of B rows."""

    mean: Tensor
    std: Tensor
    prompt: Conditioning
    blank: Conditioning


@dataclass(frozen=True, slots=True)
class Encoded(Indexed[EncodedExample]):
    """Data that were encoded before. ``blank``: ∅, of one row."""

    settings: Mapping[str, Any]
    blank: Conditioning

    def stacked(self, rows: Sequence[EncodedExample]) -> Posteriors:
        count, sizes = len(rows), torch.stack([row.sizes for row in rows])
        hidden = torch.stack([row.hidden for row in rows])
        pooled = [row.pooled for row in rows if row.pooled is not None]
        prompt = Conditioning(hidden, torch.stack(pooled), sizes) if pooled else Conditioning(hidden)
        no_pooled = self.blank.pooled.repeat(count, 1) if self.blank.pooled is not None else None
        blank = Conditioning(self.blank.hidden.repeat(count, 1, 1), no_pooled, prompt.time_ids)
        mean, std = torch.stack([row.mean for row in rows]), torch.stack([row.std for row in rows])
        return Posteriors(mean, std, prompt, blank)


def shard_name(number: int) -> str:
    return f"{number:05}.safetensors"


@dataclass(frozen=True, slots=True)
class _Shard:
    """A file of rows, mapped; ``text``: which of its captions is each row's."""

    file: Any
    names: Sequence[str]
    captions: Sequence[str]
    text: Sequence[int]

    def row(self, index: int) -> EncodedExample:
        file, text = self.file, self.text[index]
        mean, std, sizes = (file.get_slice(name)[index].float() for name in ("mean", "std", "sizes"))
        pooled = file.get_slice("pooled")[text].float() if "pooled" in file.keys() else None  # noqa: SIM118
        hidden = file.get_slice("hidden")[text].float()
        return EncodedExample(self.names[index], self.captions[index], mean, std, hidden, pooled, sizes)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """A file of the folder, mapped. Raises FormatError, also for what goes wrong within."""
    try:
        if not path.is_file():  # a pipe is waited for
            raise ValueError("not a file")
        yield safe_open(path, framework="pt")
    except (OSError, SafetensorError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise FormatError(f"{path}: cannot be read ({error})", "encode again: whole shards are kept") from None


def _open(reference: str, options: Options) -> Data[EncodedExample]:
    folder = Path(reference)
    manifest = EncodedManifest.read(folder)
    if manifest.shards is None:
        raise FormatError(f"{folder}: was not encoded to its end", "run the same command again: it goes on")
    blank = _blank(folder / BLANK)
    counts = enumerate(manifest.shards)
    shards = [_shard(folder / shard_name(number), count, blank) for number, count in counts if count]
    places = [(shard, row) for shard in shards for row in range(len(shard.names))]

    def get(index: int) -> EncodedExample:
        shard, row = places[index]
        return shard.row(row)

    return Encoded(reference, get, range(len(places)), manifest.settings, blank)


def _blank(path: Path) -> Conditioning:
    with _opened(path) as file:
        pooled = file.get_tensor("pooled").float() if "pooled" in file.keys() else None  # noqa: SIM118
        return Conditioning(file.get_tensor("hidden").float(), pooled)


def _shard(path: Path, count: int, blank: Conditioning) -> _Shard:
    """Raises FormatError where it has not ``count`` rows that are shaped as ``blank`` is."""
    with _opened(path) as file:
        names, captions = (_texts(file.metadata()[name], count) for name in ("names", "captions"))
        shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
        if shapes != _expected(count, shapes, blank):
            raise ValueError(f"not {count} rows of what was encoded")
        text = file.get_tensor("text").tolist()
        if not all(type(index) is int and 0 <= index < shapes["hidden"][0] for index in text):
            raise ValueError("names captions that it has not")
        return _Shard(file, names, captions, text)


def _texts(stored: str, count: int) -> list[str]:
    found = json.loads(stored)
    if not isinstance(found, list) or len(found) != count or not all(isinstance(text, str) for text in found):
        raise ValueError(f"not {count} names and captions")
    return found


def _expected(count: int, shapes: Mapping[str, list[int]], blank: Conditioning) -> dict[str, list[int]]:
    """A shard's shapes: captions and the latents' size are as they are."""
    captions, latent = shapes["hidden"][:1], shapes["mean"][1:]
    images = {"mean": [count, *latent], "std": [count, *latent], "sizes": [count, 6], "text": [count]}
    texts = {"hidden": blank.hidden} | ({} if blank.pooled is None else {"pooled": blank.pooled})
    return images | {name: [*captions, *empty.shape[1:]] for name, empty in texts.items()}


DATA = DataKind("a folder that --encode-only wrote", lambda reference: (Path(reference) / MANIFEST).is_file(), _open)

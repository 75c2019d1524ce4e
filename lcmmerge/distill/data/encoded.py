"""What ``--encode-only`` wrote: latents' posteriors and encoded captions, so that a training needs neither encoder.

A folder with a manifest, ``blank.safetensors`` (∅: ``hidden`` [1, tokens, width] and, of SDXL, ``pooled`` [1, p]), and
shards of n rows: ``mean`` and ``std`` [n, C, h, w], scaled; ``sizes`` [n, 6]; ``text`` [n], the row of ``hidden``
[captions, tokens, width] and ``pooled`` [captions, p] that holds the row's caption. Names and captions are metadata.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lcmmerge.distill.batch import Conditioning
from lcmmerge.distill.data.base import Data, Indexed, Kind, Options
from lcmmerge.errors import FormatError

MANIFEST = "lcmmerge-encoded.json"
BLANK = "blank.safetensors"
VERSION = 1


@dataclass(frozen=True, slots=True)
class Manifest:
    """``settings``: what the numbers depend on: the model's hash, resolution, crop and so on.

    ``shards``: the rows of each; None while they are being written.
    """

    settings: Mapping[str, Any]
    shards: tuple[int, ...] | None = None
    version: int = VERSION

    def text(self) -> str:
        return json.dumps(asdict(self), indent=2, sort_keys=True, ensure_ascii=False) + "\n"

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Raises FormatError."""
        path = folder / MANIFEST
        try:
            manifest = cls(**json.loads(path.read_text("utf-8")))
        except (OSError, ValueError, TypeError, RecursionError):
            raise FormatError(f"{path}: cannot be read", "encode again, into an empty folder") from None
        if manifest.version != VERSION:
            raise FormatError(f"{path}: of version {manifest.version}, known is {VERSION}", "encode again")
        return manifest


@dataclass(frozen=True, slots=True)
class Row:
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
class Encoded(Indexed[Row]):
    """``blank``: ∅, of one row."""

    settings: Mapping[str, Any]
    blank: Conditioning

    def stacked(self, rows: Sequence[Row]) -> Posteriors:
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


def opened(path: Path) -> Any:
    """A file of the folder, mapped. Raises FormatError."""
    try:
        return safe_open(path, framework="pt")
    except (OSError, SafetensorError) as error:
        raise FormatError(f"{path}: cannot be read ({error})", "encode again: whole shards are kept") from None


def _open(reference: str, options: Options) -> Data[Row]:
    folder = Path(reference)
    manifest = Manifest.read(folder)
    if manifest.shards is None:
        raise FormatError(f"{folder}: was not encoded to its end", "run the same command again: it goes on")
    blank = opened(folder / BLANK)
    pooled = blank.get_tensor("pooled") if "pooled" in blank.keys() else None  # noqa: SIM118
    nothing = Conditioning(blank.get_tensor("hidden"), pooled)
    get = _reader([opened(folder / shard_name(number)) for number in range(len(manifest.shards))], manifest.shards)
    return Encoded(reference, get, range(sum(manifest.shards)), manifest.settings, nothing)


def _reader(shards: Sequence[Any], rows: Sequence[int]) -> Callable[[int], Row]:
    places = [(shard, row) for shard, count in enumerate(rows) for row in range(count)]
    metadata = [shard.metadata() for shard in shards]
    names = [name for entry in metadata for name in json.loads(entry["names"])]
    captions = [caption for entry in metadata for caption in json.loads(entry["captions"])]

    def get(index: int) -> Row:
        number, row = places[index]
        shard = shards[number]
        mean, std, sizes, text = (shard.get_slice(name)[row] for name in ("mean", "std", "sizes", "text"))
        hidden = shard.get_slice("hidden")[int(text)]
        pooled = shard.get_slice("pooled")[int(text)] if "pooled" in shard.keys() else None  # noqa: SIM118
        return Row(names[index], captions[index], mean, std, hidden, pooled, sizes.float())

    return get


DATA = Kind("a folder that --encode-only wrote", lambda reference: (Path(reference) / MANIFEST).is_file(), _open)

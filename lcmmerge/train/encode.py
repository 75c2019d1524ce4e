"""``--encode-only``: everything that a training would ask the VAE and the text encoders for, once, into a folder."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import count, repeat
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from lcmmerge.errors import LcmMergeError, OutputError
from lcmmerge.tensors.blockio import output_error
from lcmmerge.tensors.dtypes import of_torch
from lcmmerge.tensors.header import read_header
from lcmmerge.tensors.layout import TensorSpec
from lcmmerge.tensors.staging import Staging, write_text
from lcmmerge.tensors.writer import TensorWriter
from lcmmerge.train.conditioning import TextEncoders
from lcmmerge.train.data.base import Data, TrainingExample, empty, grouped
from lcmmerge.train.data.encoded import BLANK, MANIFEST, EncodedManifest, shard_name
from lcmmerge.train.data.loader import OnBad, ahead, full_precision, posterior
from lcmmerge.train.data.transforms import Seen, Transform


@dataclass(frozen=True, slots=True)
class EncodingPlan:
    """How to encode. ``model``: the hash that tells whose encoders these are."""

    model: str
    transform: Transform
    seed: int = 0
    batch_size: int = 8
    shard_size: int = 256

    def settings(self, encoder: TextEncoders) -> dict[str, object]:
        numbers = {"seed": self.seed, "batch_size": self.batch_size, "shard_size": self.shard_size}
        return {"model": self.model, "encoders": encoder.kind, **asdict(self.transform), **numbers}


def encode(
    data: Data[TrainingExample],
    encoder: TextEncoders,
    vae: AutoencoderKL,
    target: Path,
    plan: EncodingPlan,
    workers: int = 0,
    on_bad: OnBad | None = None,
    done: Callable[[int], None] = lambda count: None,
) -> EncodedManifest:
    """Fill the folder ``target``, shard by shard; those that an earlier run finished from the same data are kept.

    ``on_bad`` is told of an image that cannot be read, which is then left out; without it, that is an error. ``done``
    is told how many examples more are. The same data give the same bytes, however often the work was interrupted.

    Raises OutputError where the folder holds something else or was begun with other settings; FormatError,
    NumericError.
    """
    vae = full_precision(vae)
    manifest = EncodedManifest(plan.settings(encoder))
    _begin(target, manifest)
    _write(target / BLANK, _blank(encoder), {})
    shards: list[int] = []
    for examples in grouped(data, plan.shard_size):
        path, source = target / shard_name(len(shards)), _source(examples)
        if (rows := _rows(path, source)) is None:
            seen = _seen(examples, plan, len(shards) * plan.shard_size, workers, on_bad)
            names, captions = ([getattr(one, field) for one in seen] for field in ("name", "caption"))
            metadata = {"source": source, "names": json.dumps(names), "captions": json.dumps(captions)}
            _write(path, _tensors(seen, encoder, vae, plan.batch_size), metadata)
            rows = len(seen)
        shards.append(rows)
        done(len(examples))
    if not sum(shards):
        raise empty(data.name)
    manifest = replace(manifest, shards=tuple(shards))
    write_text(target / MANIFEST, manifest.text())
    return manifest


def _begin(target: Path, manifest: EncodedManifest) -> None:
    if (target / MANIFEST).exists():
        before = EncodedManifest.read(target).settings
        if changed := [name for name, value in manifest.settings.items() if before.get(name) != value]:
            now = ", ".join(f"{name} {before.get(name)}, now {manifest.settings[name]}" for name in changed)
            raise OutputError(f"{target}: was begun with other settings ({now})", "choose another folder, or remove it")
    elif target.exists() and (not target.is_dir() or any(not path.name.startswith(".") for path in target.iterdir())):
        raise OutputError(f"{target}: is there, and holds something else", "choose another folder")
    try:
        target.mkdir(exist_ok=True)
    except OSError as error:
        raise output_error(target, error) from None
    write_text(target / MANIFEST, manifest.text())


def _source(examples: Sequence[TrainingExample]) -> str:
    """What tells whether a shard is of these examples."""
    return hashlib.sha256(json.dumps([(one.name, one.caption) for one in examples]).encode()).hexdigest()


def _rows(path: Path, source: str) -> int | None:
    """How many rows an earlier run made of these examples; None where it made none, or they are damaged."""
    if not path.is_file():
        return None
    try:
        metadata = read_header(path)[1]
        return len(json.loads(metadata["names"])) if metadata.get("source") == source else None
    except (LcmMergeError, LookupError, ValueError, TypeError, RecursionError):
        return None


def _seen(
    examples: Sequence[TrainingExample], plan: EncodingPlan, first: int, workers: int, on_bad: OnBad | None
) -> list[Seen]:
    """Those that can be read."""
    found: list[Seen] = []
    calls = zip(examples, repeat(plan.seed), count(first), strict=False)
    for seen in ahead(plan.transform.see, calls, workers, plan.batch_size):
        if isinstance(seen, Seen):
            found.append(seen)
        elif on_bad is None:
            raise seen
        else:
            on_bad(seen)
    return found


def _tensors(seen: Sequence[Seen], encoder: TextEncoders, vae: AutoencoderKL, batch_size: int) -> Mapping[str, Tensor]:
    """A shard's; none where no image could be read."""
    if not seen:
        return {}
    batches = [torch.stack([one.pixels for one in batch]) for batch in grouped(seen, batch_size)]
    means, stds = zip(*(posterior(vae, batch) for batch in batches), strict=True)
    captions = list(dict.fromkeys(one.caption for one in seen))
    told = encoder(captions)
    tensors = {
        "mean": torch.cat(means),
        "std": torch.cat(stds),
        "sizes": torch.tensor([one.sizes for one in seen]),
        "text": torch.tensor([captions.index(one.caption) for one in seen]),
        "hidden": told.hidden,
    }
    return tensors if told.pooled is None else {**tensors, "pooled": told.pooled}


def _blank(encoder: TextEncoders) -> Mapping[str, Tensor]:
    blank = encoder.blank(1)
    return {"hidden": blank.hidden} if blank.pooled is None else {"hidden": blank.hidden, "pooled": blank.pooled}


def _write(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    specs = [TensorSpec(name, of_torch(tensor.dtype), tuple(tensor.shape)) for name, tensor in tensors.items()]
    with Staging(path) as staging, TensorWriter(staging.folder / path.name, specs, lambda sha256: metadata) as writer:
        for name, tensor in tensors.items():
            writer.write(name, tensor.cpu())
        writer.finish()
        staging.commit_files()

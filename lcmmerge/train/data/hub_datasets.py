"""A dataset of the library ``datasets``: a saved folder, or ``hf://datasets/owner/name[@revision]``.

https://huggingface.co/docs/datasets
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from lcmmerge.errors import FormatError, NotFoundError
from lcmmerge.train.data.base import Data, DataKind, Indexed, Options, TrainingExample

HUB = "hf://datasets/"
SAVED = ("state.json", "dataset_dict.json")


def _accepts(reference: str) -> bool:
    return reference.startswith(HUB) or any((Path(reference) / name).is_file() for name in SAVED)


def _open(reference: str, options: Options) -> Data[TrainingExample]:
    import datasets

    rows = _load(datasets, reference, options)
    for column in (options.image_column, *([options.text_column] if options.caption is None else [])):
        if column not in rows.features:
            known = ", ".join(rows.features)
            raise FormatError(f"{reference}: no column {column!r}", f"its columns: {known}; see --image-column")
    if not isinstance(rows.features[options.image_column], datasets.Image):
        raise FormatError(f"{reference}: the column {options.image_column!r} holds no images", "see --image-column")
    names = [f"{reference}[{index}]" for index in range(len(rows))]
    own = list(rows[options.text_column]) if options.caption is None else [None] * len(rows)
    cure = f"write {options.text_column!r}"
    captions = [options.caption_of(name, text, cure) for name, text in zip(names, own, strict=True)]
    images = rows.select_columns([options.image_column]).with_format(None)
    images = images.cast_column(options.image_column, datasets.Image(decode=False))

    def image(index: int) -> Path | bytes:
        stored = images[index][options.image_column]
        if stored is None or not (stored["bytes"] or stored["path"]):
            raise FormatError(f"{names[index]}: has no image", "remove it from the dataset")
        return Path(stored["path"]) if stored["bytes"] is None else bytes(stored["bytes"])

    def get(index: int) -> TrainingExample:
        return TrainingExample(names[index], captions[index], lambda: image(index))

    return Indexed(reference, get, range(len(rows)))


def _load(datasets: Any, reference: str, options: Options) -> Any:
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    name, _, revision = reference.removeprefix(HUB).partition("@")
    try:
        if reference.startswith(HUB):
            found = datasets.load_dataset(name, revision=revision or None)
        else:
            found = datasets.load_from_disk(reference)
    except Exception as error:  # of datasets, the Hub's client, its HTTP library, Arrow: they share no base
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        hint = f"the form is {HUB}owner/name[@revision]; a private one needs `hf auth login`"
        raise NotFoundError(f"data {reference!r}: cannot be loaded ({reason})", hint) from None
    if not isinstance(found, datasets.DatasetDict):
        return found
    if options.split not in found:
        raise NotFoundError(f"{reference}: no split {options.split!r}", f"its splits: {', '.join(found)}")
    return found[options.split]


DATA = DataKind(f"a dataset that `datasets` saved, or {HUB}owner/name[@revision]", _accepts, _open)

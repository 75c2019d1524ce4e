"""A folder of images: captions in ``name.txt`` beside ``name.png``, or in a metadata file.

Metadata as ``datasets``' imagefolder reads them, ``file_name`` and ``text`` for each image:
https://huggingface.co/docs/datasets/image_dataset
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path

from lcmmerge.errors import FormatError, NotFoundError
from lcmmerge.refs.files import read_text
from lcmmerge.train.data.base import IMAGES, Data, DataKind, Indexed, Options, TrainingExample

METADATA = ("metadata.jsonl", "metadata.csv")


def _open(reference: str, options: Options) -> Data[TrainingExample]:
    folder = Path(reference)
    metadata = next((folder / name for name in METADATA if (folder / name).is_file()), None)
    found = list(_listed(metadata, options) if metadata else _beside(folder, options))
    return Indexed(reference, found.__getitem__, range(len(found)))


def _beside(folder: Path, options: Options) -> Iterator[TrainingExample]:
    """Every image in the folder and the folders within, by name; none that is hidden."""
    for path in sorted(folder.rglob("*")):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if path.suffix.lower().removeprefix(".") in IMAGES and not hidden:
            beside = path.with_suffix(".txt")
            own = _text(beside) if options.caption is None and beside.is_file() else None
            yield _example(path, own, f"write it into {beside.name}", options)


def _listed(metadata: Path, options: Options) -> Iterator[TrainingExample]:
    for number, entry in _entries(metadata):
        place = f"{metadata}:{number}"
        name = entry.get("file_name") if isinstance(entry, dict) else None
        if not isinstance(name, str):
            raise FormatError(f"{place}: no file_name", "each entry names an image: file_name, text")
        path = metadata.parent / name
        if not path.is_file():
            raise NotFoundError(f"{path}: no such image, and {place} names it", "add it, or remove the entry")
        yield _example(path, entry.get(options.text_column), f"write {options.text_column!r} at {place}", options)


def _entries(metadata: Path) -> Iterator[tuple[int, dict[str, object]]]:
    """Each entry with the number of its line."""
    text = _text(metadata)
    if metadata.suffix == ".csv":
        try:
            reader = csv.DictReader(text.splitlines())
            yield from ((reader.line_num, dict(row)) for row in reader)
        except csv.Error as error:
            raise FormatError(f"{metadata}: not CSV ({error})", "a line for each image: file_name,text") from None
        return
    for number, line in enumerate(text.splitlines(), 1):
        try:
            if line.strip():
                yield number, json.loads(line)
        except (ValueError, RecursionError):
            raise FormatError(f"{metadata}:{number}: not JSON", "one object a line: file_name, text") from None


def _example(path: Path, own: object, cure: str, options: Options) -> TrainingExample:
    return TrainingExample(str(path), options.caption_of(str(path), own, cure), lambda: path)


def _text(path: Path) -> str:
    try:
        return read_text(path)
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise FormatError(f"{path}: cannot be read ({reason})", "captions are plain UTF-8 text") from None


DATA = DataKind(
    f"a folder of images with captions in NAME.txt, {' or '.join(METADATA)}", lambda name: Path(name).is_dir(), _open
)

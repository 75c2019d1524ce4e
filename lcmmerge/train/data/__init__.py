"""Data to train on: a module here that defines ``DATA`` is the kind of its name."""

from __future__ import annotations

from typing import Any, cast

from lcmmerge.errors import NotFoundError
from lcmmerge.registry import entries
from lcmmerge.train.data.base import Data, DataKind, Indexed, Options, TrainingExample

__all__ = ["Data", "DataKind", "Indexed", "Options", "TrainingExample", "kinds", "open_data"]


def kinds() -> dict[str, DataKind]:
    """Every registered kind by name, in name order."""
    return {name: cast(DataKind, kind) for name, kind in entries("lcmmerge.train.data", "DATA").items()}


def open_data(reference: str, options: Options | None = None) -> Data[Any]:
    """The data at a path, a pattern or a Hub reference, of the kind that accepts it.

    Raises NotFoundError, FormatError, and LcmMergeError where a package is missing.
    """
    in_turn = sorted(kinds().items(), key=lambda entry: entry[0] == "folder")  # any folder could be one of images
    for _, kind in in_turn:
        if kind.accepts(reference):
            return kind.open(reference, options or Options())
    known = "; ".join(f"{name}: {kind.help}" for name, kind in kinds().items())
    raise NotFoundError(f"data {reference!r}: no such folder or files", known)

"""Samples by what they depend on, so that nothing is drawn twice: files in the study's folder.

Where the study is in a database of its own they are in that too, so a worker elsewhere has what was drawn here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load, save
from torch import Tensor

from lcmmerge.errors import FormatError
from lcmmerge.history import canonical_json
from lcmmerge.search.database import Database
from lcmmerge.search.drawing import Drawing
from lcmmerge.tensors.blockio import output_error
from lcmmerge.tensors.staging import replace_with

VERSION = 1  # of how samples are drawn and stored


class Store:
    """The samples of a study on this disk, by what they depend on.

    ``folder``: made where it is not there. ``inputs``: what else samples depend on. Raises OutputError.

    ``database``: where others find what is drawn here.
    """

    def __init__(self, folder: Path, inputs: Mapping[str, Any], database: Database | None = None) -> None:
        self._folder, self._inputs, self._database = folder, inputs, database
        make_folder(folder)

    def path(self, drawing: Drawing) -> Path:
        return self._folder / f"{self._key(drawing)}.safetensors"

    def get(self, drawing: Drawing) -> Tensor | None:
        """[jobs, C, h, w] float32, or None where they were not drawn yet. Raises FormatError, LcmMergeError."""
        path = self.path(drawing)
        if not path.exists():
            content = self._database.get(self._key(drawing)) if self._database else None
            if content is None:
                return None
            replace_with(path, content)
        try:
            return load(path.read_bytes())["latents"]
        except Exception:  # safetensors' errors have no common base
            raise FormatError(f"{path}: is damaged", "remove it: it will be drawn again") from None

    def put(self, drawing: Drawing, latents: Tensor) -> None:
        """Raises OutputError, LcmMergeError."""
        content = save({"latents": latents.contiguous()})
        replace_with(self.path(drawing), content)
        if self._database:
            self._database.put(self._key(drawing), content)

    def _key(self, drawing: Drawing) -> str:
        content = {"version": VERSION, "inputs": self._inputs, **drawing.as_dict()}
        return hashlib.sha256(canonical_json(content).encode()).hexdigest()


def make_folder(folder: Path) -> None:
    """Raises OutputError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise output_error(folder, error) from None

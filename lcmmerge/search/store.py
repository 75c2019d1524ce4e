"""Samples on disk, by what they depend on, so that nothing is drawn twice; and who of several processes is alive."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

from filelock import FileLock, Timeout
from safetensors.torch import load_file, save
from torch import Tensor

from lcmmerge.errors import FormatError
from lcmmerge.merge.provenance import canonical_json
from lcmmerge.search.drawing import Drawing
from lcmmerge.tensors.blockio import output_error

VERSION = 1  # of how samples are drawn and stored


class Store:
    """``folder``: made where it is not there. ``inputs``: what else samples depend on. Raises OutputError."""

    def __init__(self, folder: Path, inputs: Mapping[str, Any]) -> None:
        self._folder, self._inputs = folder, inputs
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise output_error(folder, error) from None

    def path(self, drawing: Drawing) -> Path:
        content = {"version": VERSION, "inputs": self._inputs, **drawing.as_dict()}
        return self._folder / f"{hashlib.sha256(canonical_json(content).encode()).hexdigest()}.safetensors"

    def get(self, drawing: Drawing) -> Tensor | None:
        """[jobs, C, h, w] float32, or None where they were not drawn yet. Raises FormatError."""
        path = self.path(drawing)
        if not path.exists():
            return None
        try:
            return load_file(path)["latents"]
        except Exception:  # safetensors' errors have no common base
            raise FormatError(f"{path}: is damaged", "remove it: it will be drawn again") from None

    def put(self, drawing: Drawing, latents: Tensor) -> None:
        replace_with(self.path(drawing), save({"latents": latents.contiguous()}))

    @contextmanager
    def held(self, drawing: Drawing) -> Iterator[None]:
        """Others who want to draw the same wait."""
        lock = self.path(drawing).with_suffix(".lock")
        with FileLock(lock):
            yield
        lock.unlink(missing_ok=True)


def replace_with(path: Path, content: bytes) -> None:
    """All or nothing, also where two processes write the same. Raises OutputError."""
    partial = path.with_name(f".{path.name}.{uuid4().hex}")
    try:
        try:
            with partial.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise output_error(path, error) from None


class Worker:
    """This process, as others see it: a lock that the system lets go of when the process ends, however it ends."""

    def __init__(self, folder: Path) -> None:
        self.name = uuid4().hex
        self._folder = folder
        self._lock = FileLock(self._path(self.name))
        self._lock.acquire()

    def close(self) -> None:
        self._lock.release()
        self._path(self.name).unlink(missing_ok=True)

    def others(self) -> dict[str, bool]:
        """The other processes that began here and did not say that they ended → whether they live."""
        found = {}
        for path in self._folder.glob(self._path("*").name):
            name = path.name.removeprefix(".").removesuffix(".worker")
            if name != self.name:
                try:
                    with FileLock(path).acquire(timeout=0):
                        found[name] = False
                except Timeout:
                    found[name] = True
        return found

    def forget(self, name: str) -> None:
        """Of a dead one."""
        self._path(name).unlink(missing_ok=True)

    def _path(self, name: str) -> Path:
        return self._folder / f".{name}.worker"

"""Where training stands, on the disk: all or nothing, so that a killed run goes on from the last one that was complete.

A checkpoint is a folder ``step-000500`` of the work folder: ``trained.safetensors``, ``optimizer.pt`` and
``state.json``. Random numbers and the order of the data are functions of seed and step, so no state of theirs is kept.
"""

from __future__ import annotations

import io
import json
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from lcmmerge.errors import FormatError, LcmMergeError
from lcmmerge.refs.files import read_object
from lcmmerge.tensors.staging import Staging, is_leftover

PREFIX = "step-"
WEIGHTS, OPTIMIZER, STATE = "trained.safetensors", "optimizer.pt", "state.json"
OURS = re.compile(PREFIX + r"(\d{6}|[1-9]\d{6,})", re.ASCII)


@dataclass(frozen=True, slots=True)
class Best:
    """The lowest validation score so far, and after which step."""

    score: float
    step: int


@dataclass(frozen=True, slots=True)
class TrainingState:
    """All that a training needs to go on to the bit.

    ``identity``: every setting that the numbers depend on. ``optimizer``: its and the loss scaler's state.
    """

    step: int
    trained: Mapping[str, Tensor]
    optimizer: Mapping[str, Any]
    identity: Mapping[str, Any]
    best: Best | None = None


class Checkpoints:
    """The checkpoints of a work folder: the newest ``keep`` and the best one."""

    def __init__(self, folder: Path, keep: int = 1) -> None:
        self.folder, self._keep = folder, keep

    def steps(self) -> list[int]:
        """After which steps there is one, in order; the folder may hold what is the user's."""
        names = (path.name for path in self.folder.glob(f"{PREFIX}*") if not path.is_symlink() and _is_ours(path))
        return sorted(int(found[1]) for found in map(OURS.fullmatch, names) if found)

    def clear(self) -> None:
        """Remove all, and what killed runs left of others."""
        for path in [*map(self._path, self.steps()), *filter(is_leftover, self.folder.glob(f".{PREFIX}*"))]:
            shutil.rmtree(path)

    def save(self, checkpoint: TrainingState) -> None:
        """Raises OutputError."""
        buffer = io.BytesIO()
        torch.save(dict(checkpoint.optimizer), buffer)
        state = {"step": checkpoint.step, "identity": checkpoint.identity, "best": _as_list(checkpoint.best)}
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self._path(checkpoint.step)
        with Staging(path, force=_is_ours(path)) as staging:
            content = staging.folder / staging.target.name
            content.mkdir()
            weights = {name: tensor.cpu().contiguous() for name, tensor in checkpoint.trained.items()}
            (content / WEIGHTS).write_bytes(save(weights))
            (content / OPTIMIZER).write_bytes(buffer.getbuffer())
            (content / STATE).write_text(json.dumps(state, indent=2), encoding="utf-8")
            staging.commit_folder()
        self._prune(checkpoint.best)

    def load(self, step: int, identity: Mapping[str, Any] | None = None) -> TrainingState:
        """Raises FormatError, and LcmMergeError where the checkpoint was made with another ``identity``."""
        path = self._path(step)
        with self.reading(step):
            if not all((path / name).is_file() for name in (WEIGHTS, OPTIMIZER, STATE)):  # a pipe is waited for
                raise FileNotFoundError
            state = read_object(path / STATE)
            found = TrainingState(
                int(state["step"]),
                load_file(path / WEIGHTS),
                dict(torch.load(path / OPTIMIZER, weights_only=True)),
                dict(state["identity"]),
                _best(state["best"]),
            )
            if found.step != step:
                raise ValueError
        if identity is not None:
            _same(path, found.identity, identity)
        return found

    @contextmanager
    def reading(self, step: int) -> Iterator[None]:
        """Raises FormatError for whatever goes wrong within: it is the checkpoint that is damaged."""
        try:
            yield
        except (MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            hint = "remove it, and resume from the one before"
            raise FormatError(f"{self._path(step)}: not a whole checkpoint ({type(error).__name__})", hint) from None

    def _path(self, step: int) -> Path:
        return self.folder / f"{PREFIX}{step:06d}"

    def _prune(self, best: Best | None) -> None:
        newest = self.steps()[-self._keep :]
        for step in self.steps():
            if step not in newest and not (best and step == best.step):
                shutil.rmtree(self._path(step), ignore_errors=True)


def _is_ours(folder: Path) -> bool:
    """Whether it holds a checkpoint's files, whole or not."""
    return any((folder / name).exists() for name in (STATE, OPTIMIZER, WEIGHTS))


def _as_list(best: Best | None) -> list[float] | None:
    return [best.score, best.step] if best else None


def _best(stored: list[float] | None) -> Best | None:
    return Best(float(stored[0]), int(stored[1])) if stored else None


def _same(path: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    now = json.loads(json.dumps(now))  # as it would have been stored
    differ = sorted(key for key in {*before, *now} if before.get(key) != now.get(key))
    if differ:
        raise LcmMergeError(
            f"{path}: was made with other settings",
            "repeat the settings, or begin anew with --force",
            [f"{key}: {before.get(key)} then, {now.get(key)} now" for key in differ],
        )

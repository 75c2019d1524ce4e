"""All or nothing: outputs grow in a hidden folder beside the target and take their names at the very end."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Self
from uuid import uuid4

from lcmmerge.errors import OutputError
from lcmmerge.tensors.blockio import output_error

ELSEWHERE = "choose another name with -o"


class Staging:
    """``with Staging(target) as staging:`` write into ``staging.folder``, then commit.

    Leaving without a commit removes everything. What a killed run left is removed by the next run to the same
    target. Raises OutputError where the folder is not writable, or another run is writing the target.
    """

    def __init__(self, target: Path) -> None:
        self.target = target
        self.folder = target.parent / f".{target.name}.partial"
        self._descriptor = -1

    def __enter__(self) -> Self:
        try:
            self.folder.mkdir(exist_ok=True)
            self._descriptor = os.open(self.folder, os.O_RDONLY)
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._descriptor)
            raise OutputError(
                f"{self.target}: another run is writing it", "wait for it, or choose another -o"
            ) from None
        except OSError as error:
            raise output_error(self.target, error) from None
        for leftover in self.folder.iterdir():
            _remove(leftover)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        os.close(self._descriptor)
        if isinstance(error, OSError):
            raise output_error(self.target, error) from None

    def commit_files(self) -> None:
        """Move each staged file beside the target, in name order, an index last: it names the others."""
        for file in sorted(self.folder.iterdir(), key=lambda file: (file.suffix == ".json", file.name)):
            file.replace(self.target.parent / file.name)
        _sync(self.target.parent)

    def commit_folder(self) -> None:
        """The staged folder becomes the target; an older target is put aside first and removed last."""
        content = self.folder / self.target.name
        aside = self.folder / ".replaced"
        if self.target.exists():
            self.target.replace(aside)
        content.replace(self.target)
        _sync(self.target.parent)


def write_text(path: Path, text: str) -> None:
    """All or nothing, in UTF-8; what a killed run left of it is removed by the next. Raises OutputError."""
    with Staging(path) as staging:
        with (staging.folder / path.name).open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        staging.commit_files()


def replace_with(path: Path, content: bytes) -> None:
    """All or nothing for what is in memory, also where two processes write the same file. Raises OutputError."""
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


def check_target(
    target: Path, *, force: bool, needed: int, inputs: Iterable[Path] = (), folder: bool = False
) -> None:
    """Everything about a target (a file, or a pipeline's ``folder``) that can be known before any work is done.

    An input is never replaced, not even with ``force``, nor is a folder that is no pipeline. Raises OutputError.
    """
    resolved = target.resolve()
    if any(resolved == path or resolved in path.parents for path in map(Path.resolve, inputs)):
        raise OutputError(f"{target}: is an input of this run", ELSEWHERE)
    if target.is_dir() and not (folder and _replaceable(target)):
        raise OutputError(f"{target}: is a folder, and would be lost", ELSEWHERE)
    if target.exists() and not force:
        raise OutputError(f"{target}: exists already", f"{ELSEWHERE}, or replace it with --force")
    if not target.parent.is_dir():
        raise OutputError(f"{target.parent}: no such folder", "create it first, or choose another with -o")
    if not os.access(target.parent, os.W_OK):
        raise OutputError(f"{target.parent}: not writable", "choose a folder that you may write to with -o")
    free = shutil.disk_usage(target.parent).free
    if free < needed:
        raise OutputError(
            f"{target}: needs {needed / 1e9:.2f} GB, and the disk has {free / 1e9:.2f} GB free",
            "free some space, or write elsewhere with -o",
        )


def _replaceable(folder: Path) -> bool:
    return (folder / "model_index.json").exists() or not any(folder.iterdir())


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

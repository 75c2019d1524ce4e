"""What can be said of a target before any work is done: its name, whether it may be written, and has room."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path, PosixPath

from lcmmerge.errors import OutputError
from lcmmerge.refs.weights import PICKLES, SAFETENSORS, has_suffix

GGUF = ".gguf"
ELSEWHERE = "choose another name with -o"


class Unmade(PosixPath):
    """A folder that is not there, by the slash at its end: no name of a file."""


def target_of(text: str | os.PathLike[str]) -> Path:
    """A target as a person writes it."""
    text = os.fspath(text)
    return Unmade(text) if text.endswith("/") and not Path(text).is_dir() else Path(text)


def joined(*references: str) -> str:
    """A name for what is made of these: ``base-style-lcm``."""
    return "-".join(Path(reference).stem for reference in references)


def safetensors_name(target: Path | None, name: str, suffix: str = SAFETENSORS[0]) -> Path:
    """The file to write: with the suffix, where it has none, and called ``name`` in a folder that is there.

    Raises OutputError for a pickle's suffix, for that of another format, and for a folder that is not there.
    """
    if isinstance(target, Unmade):
        raise OutputError(f"{target}/: no such folder", "create it first, or omit the slash: it is then a file's name")
    if target is None or target.is_dir():
        target = (target or Path()) / name
    elif has_suffix(target.name, SAFETENSORS, (GGUF,)):
        if has_suffix(target.name, (GGUF,)) == (suffix == GGUF):
            return target
        cure = "name it so" if suffix == GGUF else "name it .safetensors, or choose an --encoding such as gguf:q8_0"
        raise OutputError(f"{target}: what is written is {suffix}", cure)
    elif has_suffix(target.name, PICKLES):
        raise OutputError(f"{target}: {target.suffix} files can hold code and are not written", "name it .safetensors")
    return target.with_name(target.name + suffix)


def check_target(
    target: Path, *, force: bool, needed: int, inputs: Iterable[Path] = (), folder: bool = False
) -> None:
    """Everything about a target (a file, or a pipeline's ``folder``) that can be known before any work is done.

    An input is never replaced, not even with ``force``, nor is a folder that is no pipeline. Raises OutputError.
    """
    refuse_special(target)
    resolved = target.resolve()
    if any(resolved == path or resolved in path.parents for path in map(Path.resolve, inputs)):
        raise OutputError(f"{target}: is an input of this run", ELSEWHERE)
    if target.is_dir() and not (folder and _replaceable(target)):
        raise OutputError(f"{target}: is a folder, and would be lost", ELSEWHERE)
    if target.exists() and not force:
        raise exists_already(target)
    if not target.parent.is_dir():
        raise OutputError(f"{target.parent}: no such folder", "create it first, or choose another with -o")
    if not os.access(target.parent, os.W_OK):
        raise OutputError(f"{target.parent}: not writable", "choose a folder that you may write to with -o")
    check_space(target, target.parent, needed)


def check_space(target: Path, folder: Path, needed: int) -> None:
    """``needed`` bytes, on the disk where the folder is. Raises OutputError."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OutputError(
            f"{target}: needs {needed / 1e9:.2f} GB, and the disk has {free / 1e9:.2f} GB free",
            "free some space, or write elsewhere with -o",
        )


def refuse_special(target: Path) -> None:
    """Raises OutputError for a link that leads nowhere (to a disk that is not mounted, say), a device, a pipe."""
    with suppress(OSError):
        mode = target.lstat().st_mode
        if stat.S_ISLNK(mode) and not target.exists():
            raise OutputError(f"{target}: is a link that leads nowhere", f"remove it, or {ELSEWHERE}")
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode) or stat.S_ISLNK(mode)):
            raise OutputError(f"{target}: is a device, a pipe or a socket", ELSEWHERE)


def exists_already(target: Path) -> OutputError:
    return OutputError(f"{target}: exists already", f"{ELSEWHERE}, or replace it with --force")


def _replaceable(folder: Path) -> bool:
    return (folder / "model_index.json").exists() or not any(folder.iterdir())

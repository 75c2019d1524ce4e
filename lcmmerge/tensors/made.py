"""Whose a file is: ours is one of a record, inside the record's own folder, whose sha256 is the recorded one.

A study's folder, where files come and go, has its record in ``files.json``; a run's is its ``run.json``.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from lcmmerge.errors import FormatError, OutputError
from lcmmerge.refs.files import inside, is_inside, read_object
from lcmmerge.tensors.digest import sha256_of
from lcmmerge.tensors.staging import is_leftover, replace_with, write_text

Made = Mapping[str, Sequence[str]]  # path below a folder → each sha256 that a file of ours has, or had, there
RECORD = "files.json"
NOBODYS = (".DS_Store", "Thumbs.db", "desktop.ini")  # what file managers leave in every folder that they show
SHOWN = 5


def strangers(root: Path, target: Path, made: Made) -> list[Path]:
    """What lies at ``target``, a path below ``root``, and is not ours: files, and links, which are never followed.

    ``made``: of ``root``; a record within the folder ``target`` counts too.
    """
    within = read_record(target)
    return [
        path
        for path in files_at(target)
        if path.name not in NOBODYS
        and not _is_ours(path, path.relative_to(root), made)
        and not (within and (path == target / RECORD or _is_ours(path, path.relative_to(target), within)))
    ]


def files_at(target: Path) -> Iterator[Path]:
    """The file itself, or all that lie in the folder and below it; a link is one of them.

    What a killed run left in a hidden folder is none: the next run to the same target removes it.
    """
    if target.is_symlink() or target.is_file():
        yield target
        return
    for folder, folders, files in os.walk(target):
        links = [name for name in folders if Path(folder, name).is_symlink()]
        folders[:] = sorted(name for name in folders if not is_leftover(Path(folder, name)))
        yield from (Path(folder, name) for name in sorted([*files, *links]))


def refuse_strangers(paths: Sequence[Path], target: Path) -> None:
    """Raises OutputError where there are any."""
    if paths:
        said = [str(path) for path in paths[:SHOWN]]
        said += [f"and {len(paths) - SHOWN} more"] if len(paths) > SHOWN else []
        cause = f"{target}: would replace what lcmmerge did not make, or what was changed since: {len(paths)} in all"
        raise OutputError(cause, "keep it elsewhere, or have it replaced with --force", said)


def read_record(folder: Path) -> Made:
    """Nothing where there is none, or what is no record."""
    with suppress(OSError, ValueError, FormatError):
        return checked(read_object(inside(folder, RECORD)).get("files"))
    return {}


def record_all(folder: Path) -> None:
    """All that lies in the folder is ours. Raises OutputError."""
    names = [path.relative_to(folder).as_posix() for path in files_at(folder) if not path.is_symlink()]
    write_record(folder, {name: [sha256_of([folder / name])] for name in names if name != RECORD})


def write_record(folder: Path, made: Made) -> None:
    """Raises OutputError."""
    write_text(folder / RECORD, json.dumps({"files": made}, indent=2, sort_keys=True, ensure_ascii=False) + "\n")


def refuse_taken(folder: Path, names: Iterable[str]) -> None:
    """Raises OutputError where something that is not ours has one of the names in a folder, or its record's."""
    made = read_record(folder)
    taken = [folder / name for name in names if _lies(folder / name) and not _is_ours(folder / name, Path(name), made)]
    if not made and _lies(folder / RECORD):
        taken.append(folder / RECORD)
    refuse_strangers(taken, folder)


def put(folder: Path, files: Mapping[str, bytes], *, stale: Iterable[str] = (), force: bool) -> None:
    """Write files into a folder that keeps a record, and remove those of ours that are ``stale``.

    Raises OutputError where one is not ours, unless ``force``.
    """
    if not force:
        refuse_taken(folder, files)
    made = read_record(folder)
    new = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    # Before they are written, so that a killed run's are ours to the next.
    write_record(folder, {**made, **{name: [*made.get(name, ()), sha256] for name, sha256 in new.items()}})
    for name, content in files.items():
        replace_with(folder / name, content)
    for name in stale:
        if _is_ours(folder / name, Path(name), made):
            (folder / name).unlink()


def checked(value: object) -> Made:
    """A record as JSON has it. Raises FormatError where it is none, or names what is not in its folder."""
    if isinstance(value, dict) and all(isinstance(name, str) and is_inside(name) for name in value):
        shas = list(value.values())
        if all(isinstance(item, list) and all(isinstance(sha256, str) for sha256 in item) for item in shas):
            return value
    raise FormatError("is not a record of files in a folder", "do not trust what it is of")


def _lies(path: Path) -> bool:
    return path.is_symlink() or path.exists()


def _is_ours(path: Path, name: Path, made: Made) -> bool:
    known = made.get(name.as_posix(), ())
    return bool(known) and path.is_file() and not path.is_symlink() and sha256_of([path]) in known

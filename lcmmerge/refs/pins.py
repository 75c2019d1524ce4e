"""A reference made exact: commit, sizes and hashes, without a download of weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from lcmmerge.refs.hub import fetch, file_sha256, repository
from lcmmerge.refs.reference import parse
from lcmmerge.refs.weights import local_tree, needed, small_files


@dataclass(frozen=True, slots=True)
class PinnedFile:
    """A file of a source, by its hash.

    ``path``: relative to the folder that the reference names, or to the one that its file lies in.

    ``sha256``: "" of a file that was not to be fetched, where nobody knows it.
    """

    path: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Pin:
    """A source in a lock file: the commit and the files that were meant.

    ``uri``: ``hf://owner/repo@<40-hex commit>/path``; of a local path that path, and then ``commit`` is None.

    ``files``, sorted by path, are all that a merge reads. ``license``: as the Hub states it.
    """

    reference: str
    uri: str
    commit: str | None
    files: tuple[PinnedFile, ...]
    license: str | None = None


def pin(
    reference: str,
    subject: str = "file",
    variant: str | None = None,
    *,
    configs: bool = False,
    known: Mapping[str, str] | None = None,
    digest: Callable[[Path], str] = file_sha256,
) -> Pin:
    """What ``reference`` is now, or its ``configs`` alone: from the Hub's own records, of a local path by hashing it.

    Small files, which have no record of their sha256, are fetched and hashed; so are weights when the Hub cannot be
    asked and the cache holds them. ``known``: nothing is fetched, and these are the hashes of what is not in the cache.
    ``digest``: how the sha256 of a local path's files is found. Raises NotFoundError, FormatError.
    """
    parsed = parse(reference, subject)
    if parsed.kind == "local":
        return Pin(reference, reference, None, _local(parsed.path, variant, digest, configs=configs))
    found = repository(parsed, subject)
    names = tuple(map(found.within, small_files(found.tree()))) if configs else found.needed(variant)
    if known is None or found.unreachable:
        fetch(found, [name for name in names if found.files[name].sha256 is None])
    files = []
    for name in names:
        record, path, inside = found.files[name], found.path(name), name.removeprefix(found.within(""))
        size = path.stat().st_size if record.size is None else record.size
        sha256 = record.sha256 or (file_sha256(path) if path.exists() else (known or {}).get(inside, ""))
        files.append(PinnedFile(inside, size, sha256))
    return Pin(reference, parsed.at(found.commit), found.commit, tuple(files), found.license)


def _local(
    path: Path, variant: str | None, digest: Callable[[Path], str], *, configs: bool
) -> tuple[PinnedFile, ...]:
    folder, name = (path, "") if path.is_dir() else (path.parent, path.name)
    tree = local_tree(path)
    names = small_files(tree) if configs else needed(tree, name, variant)
    return tuple(PinnedFile(name, (folder / name).stat().st_size, digest(folder / name)) for name in names)

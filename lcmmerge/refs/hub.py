"""A model repository at one commit: what is in it, and how that gets to this disk.

The cache is huggingface_hub's own, and shared with every other program that uses it. Its layout:
https://huggingface.co/docs/huggingface_hub/guides/manage-cache
"""

from __future__ import annotations

import glob
import hashlib
import sys
import warnings
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from lcmmerge.errors import FormatError, NotFoundError
from lcmmerge.refs.faults import explained
from lcmmerge.refs.http import RemoteFile, model_info
from lcmmerge.refs.reference import HUB, Reference, steps_out
from lcmmerge.refs.weights import Choice, Tree, choose, needed


@dataclass(frozen=True, slots=True)
class HubFile:
    """``sha256`` is the Hub's record of a large (LFS) file, None of a small one; ``size`` None when not asked."""

    size: int | None = None
    sha256: str | None = None


@dataclass(frozen=True, slots=True)
class Repository:
    """``files`` by name. ``license``: as the card states it.

    ``unreachable``: why the Hub could not be asked; the files are then those that the cache knows of.
    """

    reference: Reference
    what: str
    commit: str
    files: Mapping[str, HubFile]
    license: str | None = None
    unreachable: NotFoundError | None = None

    @property
    def root(self) -> str:
        """The folder that is meant: the reference's own, or the one that its file lies in."""
        path = self.reference.path_in_repo
        return path.rpartition("/")[0] if path in self.files else path

    @property
    def name(self) -> str:
        """The file that is meant, within ``root``; "" where the reference names a folder."""
        return self.reference.path_in_repo.removeprefix(self.root).lstrip("/")

    def path(self, name: str) -> Path:
        """Where a file of the repository is in the cache, or would be."""
        return _storage(self.reference.repo) / "snapshots" / self.commit / name

    def remote(self, name: str) -> RemoteFile:
        """A file as the Hub has it. Raises NotFoundError."""
        return RemoteFile(self.what, self.reference.repo, name, self.commit, self.files[name].size or 0)

    def within(self, name: str) -> str:
        """A name in ``root`` as one in the repository."""
        return f"{self.root}/{name}" if self.root else name

    def missing(self, names: Iterable[str]) -> list[str]:
        """Those that are not in the cache."""
        return [name for name in names if not self.path(name).exists()]

    def tree(self) -> Tree:
        """The folder's files; reading one fetches it."""

        def read(name: str) -> bytes:
            fetch(self, [self.within(name)])
            return self.path(self.within(name)).read_bytes()

        prefix = self.within("")
        names = frozenset(name.removeprefix(prefix) for name in self.files if name.startswith(prefix))
        return Tree(f"{HUB}{self.reference.repo}/{self.root}".rstrip("/"), names, read)

    def choice(self, variant: str | None = None) -> Choice:
        """The weights that the reference stands for. Raises NotFoundError, FormatError."""
        return choose(self.tree(), self.name, variant)

    def needed(self, variant: str | None = None) -> tuple[str, ...]:
        """The files that it stands for: weights and small ones. Raises NotFoundError, FormatError."""
        return tuple(self.within(name) for name in needed(self.tree(), self.name, variant))


@dataclass(frozen=True, slots=True)
class Awaited:
    """Files of a repository that are not in the cache yet."""

    repository: Repository
    names: tuple[str, ...]

    @property
    def nbytes(self) -> int:
        return sum(self.repository.files[name].size or 0 for name in self.names)

    @property
    def sha256(self) -> Mapping[Path, str]:
        """By where they will be, as the Hub records it."""
        records = {self.repository.path(name): self.repository.files[name].sha256 for name in self.names}
        return {path: sha256 for path, sha256 in records.items() if sha256}

    def fetch(self) -> None:
        """Download them. Raises NotFoundError, FormatError."""
        fetch(self.repository, self.names)
        remember(self.repository)


def repository(reference: Reference, subject: str) -> Repository:
    """Ask the Hub what the repository holds at the revision; where it cannot say, the cache. Raises NotFoundError."""
    from huggingface_hub.errors import RevisionNotFoundError

    what = f"{subject} {reference.text!r}"
    try:
        found = _asked(reference, what)
    except Exception as error:  # the Hub client's own errors, its HTTP library's and the disk's share no base
        fault = explained(error, what, reference.repo)
        cached = None if isinstance(error, RevisionNotFoundError) else _cached(reference, what)
        if cached is None:
            raise fault from error
        found = replace(cached, unreachable=fault)
    path = reference.path_in_repo
    if path and path not in found.files and not any(name.startswith(f"{path}/") for name in found.files):
        raise found.unreachable or NotFoundError(f"{what}: no such file in the repository", f"see {_page(reference)}")
    return found


def _asked(reference: Reference, what: str) -> Repository:
    info = model_info(reference.repo, reference.revision)
    files = {
        file["rfilename"]: HubFile(file.get("size"), (file.get("lfs") or {}).get("sha256"))
        for file in info["siblings"]
        if not steps_out(file["rfilename"])
    }
    stated = (info.get("cardData") or {}).get("license")
    return Repository(reference, what, info["sha"], files, stated)


def _cached(reference: Reference, what: str) -> Repository | None:
    """What is known of the revision without the Hub: the listing of an earlier download, or the files themselves."""
    from huggingface_hub import get_cached_repo_tree, snapshot_download
    from huggingface_hub.errors import CachedRepoTreeNotFoundError, LocalEntryNotFoundError

    try:
        folder = snapshot_download(
            reference.repo, revision=reference.revision, local_files_only=True, allow_patterns=[]
        )
    except LocalEntryNotFoundError:
        return None
    snapshot = Path(folder)
    try:
        names = [file.path for file in get_cached_repo_tree(reference.repo, revision=snapshot.name)]
    except CachedRepoTreeNotFoundError:
        names = [path.relative_to(snapshot).as_posix() for path in snapshot.rglob("*") if path.is_file()]
    return Repository(reference, what, snapshot.name, dict.fromkeys(names, HubFile()))


def fetch(repository: Repository, names: Iterable[str]) -> None:
    """Download what the cache lacks, and check it against the Hub's records. Raises NotFoundError, FormatError."""
    from huggingface_hub import hf_hub_download, snapshot_download
    from huggingface_hub.utils import disable_progress_bars  # type: ignore[attr-defined]

    missing, repo, commit = repository.missing(names), repository.reference.repo, repository.commit
    if missing and repository.unreachable:
        raise repository.unreachable
    if not sys.stderr.isatty():
        disable_progress_bars()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Not enough free disk space")  # what came before may be enough
            if len(missing) == 1:
                hf_hub_download(repo, missing[0], revision=commit)
            elif missing:
                snapshot_download(repo, revision=commit, allow_patterns=[glob.escape(name) for name in missing])
    except Exception as error:  # as above
        raise explained(error, repository.what, repo) from error
    for name in missing:
        if recorded := repository.files[name].sha256:
            _check(repository, name, recorded)


def _check(repository: Repository, name: str, recorded: str) -> None:
    path = repository.path(name)
    found = file_sha256(path)
    if found != recorded:
        path.resolve().unlink()
        path.unlink(missing_ok=True)
        raise FormatError(
            f"{repository.what}: {name} came with the sha256 {found[:12]}…, the Hub records {recorded[:12]}…",
            "try again; if it stays so, what HF_ENDPOINT names does not hold the Hub's files",
        )


def remember(repository: Repository) -> None:
    """Note which commit the revision is, for use without a network; downloads of a commit do not."""
    revision = repository.reference.revision or "main"
    ref = _storage(repository.reference.repo) / "refs" / revision
    if revision != repository.commit and not repository.unreachable:
        with suppress(OSError):  # a cache may be complete, and read-only
            ref.parent.mkdir(parents=True, exist_ok=True)
            ref.write_text(repository.commit)


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _storage(repo: str) -> Path:
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    return Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repo, repo_type="model")


def _page(reference: Reference) -> str:
    from huggingface_hub import constants

    return f"{constants.ENDPOINT}/{reference.repo}"

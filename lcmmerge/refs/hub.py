"""A model repository at one commit: what is in it, and how that gets to this disk.

The cache is huggingface_hub's own, and shared with every other program that uses it. Its layout:
https://huggingface.co/docs/huggingface_hub/guides/manage-cache
"""

from __future__ import annotations

import hashlib
import os
import re
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Event
from typing import Any

from lcmmerge.errors import FormatError, NotFoundError
from lcmmerge.refs.faults import explained, page
from lcmmerge.refs.files import inside
from lcmmerge.refs.guard import COMMIT, WHOLE, BadAnswerError, guarded, time_for
from lcmmerge.refs.http import LISTING, NO_LISTING, RemoteFile, model_info
from lcmmerge.refs.reference import HUB, Reference, is_name
from lcmmerge.refs.weights import Choice, Tree, choose, needed

LARGEST = 1 << 60  # bytes of a file
AT_ONCE = 8  # downloads
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class HubFile:
    """A file in a repository of the Hub.

    ``sha256`` is the Hub's record of a large (LFS) file, None of a small one; ``size`` None when not asked.
    """

    size: int | None = None
    sha256: str | None = None


@dataclass(frozen=True, slots=True)
class Repository:
    """A repository of the Hub at one commit.

    ``files`` by name. ``license``: as the card states it.

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
        """Where a file of the repository is in the cache, or would be. Raises FormatError of a link that leads out."""
        folder = _storage(self.reference.repo) / "snapshots" / self.commit
        return inside(folder, name, cached=True) if name else folder

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
        cause = f"{what}: no such file in the repository"
        raise found.unreachable or NotFoundError(cause, f"see {page(reference.repo)}")
    return found


def _asked(reference: Reference, what: str) -> Repository:
    match model_info(reference.repo, reference.revision):
        case {"sha": str(commit), "siblings": list(listed)} as info if COMMIT.fullmatch(commit):
            return Repository(reference, what, commit, dict(_files(listed)), _license(info.get("cardData")))
    raise BadAnswerError(NO_LISTING)


def _files(listed: list[Any]) -> Iterator[tuple[str, HubFile]]:
    """Without those whose names lead out. Raises BadAnswerError."""
    for file in listed:
        match file:
            case {"rfilename": str(name), "size": int(size)} if 0 <= size < LARGEST:
                lfs = file.get("lfs")
                sha256 = lfs.get("sha256") if isinstance(lfs, dict) else None
                if sha256 is not None and not (isinstance(sha256, str) and _SHA256.fullmatch(sha256)):
                    raise BadAnswerError(NO_LISTING)
                if is_name(name):
                    yield name, HubFile(size, sha256)
            case _:
                raise BadAnswerError(NO_LISTING)


def _license(card: Any) -> str | None:
    """As the card states it; several as a list."""
    stated = card.get("license") if isinstance(card, dict) else None
    several = stated if isinstance(stated, list) else [stated]
    return ", ".join(each for each in several if isinstance(each, str)) or None


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
    if not COMMIT.fullmatch(snapshot.name):
        return None
    try:
        names = [file.path for file in get_cached_repo_tree(reference.repo, revision=snapshot.name)]
    except CachedRepoTreeNotFoundError:
        names = [path.relative_to(snapshot).as_posix() for path in snapshot.rglob("*") if path.is_file()]
    return Repository(reference, what, snapshot.name, dict.fromkeys(filter(is_name, names), HubFile()))


def fetch(repository: Repository, names: Iterable[str]) -> None:
    """Download what the cache lacks, and check it against the Hub's records. Raises NotFoundError, FormatError."""
    from huggingface_hub.utils import disable_progress_bars  # type: ignore[attr-defined]

    missing = repository.missing(names)
    if missing and repository.unreachable:
        raise repository.unreachable
    if not sys.stderr.isatty():
        disable_progress_bars()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Not enough free disk space")  # what came before may be enough
        if len(missing) > 1:
            _keep_listing(repository)
            _download_all(repository, missing)
        elif missing:
            _download(repository, missing[0])


def _download_all(repository: Repository, names: list[str]) -> None:
    from huggingface_hub import close_session

    stop = Event()
    with ThreadPoolExecutor(AT_ONCE, "lcmmerge-download") as pool:
        try:
            running = [pool.submit(_download, repository, name, stop) for name in names]
            for each in running:
                each.result()
        except BaseException:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            close_session()  # what is on its way ends now, and removes what it has
            raise


def _keep_listing(repository: Repository) -> None:
    """In the cache, so that half a repository is known for what it is without the Hub."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils import tqdm  # type: ignore[attr-defined]

    class Hidden(tqdm):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options | {"disable": True})  # type: ignore[no-untyped-call]

    try:
        with guarded(LISTING, WHOLE):
            repo = repository.reference.repo
            snapshot_download(repo, revision=repository.commit, allow_patterns=[], tqdm_class=Hidden)
    except Exception as error:  # as above
        raise explained(error, repository.what, repository.reference.repo) from error


def _download(repository: Repository, name: str, stop: Event | None = None) -> None:
    from huggingface_hub import hf_hub_download

    file, repo, commit = repository.files[name], repository.reference.repo, repository.commit
    size = file.size or 0
    try:
        with guarded(size, time_for(size), commit, stop):
            hf_hub_download(repo, name, revision=commit)
    except Exception as error:  # as above
        raise explained(error, f"{repository.what}: {name}", repo) from error
    if file.sha256:
        _check(repository, name, file.sha256)


def _check(repository: Repository, name: str, recorded: str) -> None:
    path = repository.path(name)
    found = file_sha256(path)
    if found != recorded:
        # The repository's own blob, also where that is a link to one that repositories share.
        blob = Path(os.path.normpath(path.parent / path.readlink())) if path.is_symlink() else path
        path.unlink()
        own = blob.parent == Path(os.path.normpath(_storage(repository.reference.repo) / "blobs"))
        if own and blob.name not in (found, _git_sha1(blob)):  # else it is another file's, which the ETag named
            blob.unlink(missing_ok=True)
        raise FormatError(
            f"{repository.what}: {name} came with the sha256 {found[:12]}…, the Hub records {recorded[:12]}…",
            "try again; if it stays so, what HF_ENDPOINT names does not hold the Hub's files",
        )


def remember(repository: Repository) -> None:
    """Note which commit the revision is, for use without a network; downloads of a commit do not."""
    revision = repository.reference.revision or "main"
    if revision == repository.commit or repository.unreachable:
        return
    with suppress(OSError, FormatError):  # a cache may be complete, and read-only
        ref = inside(_storage(repository.reference.repo), f"refs/{revision}")
        ref.parent.mkdir(parents=True, exist_ok=True)
        ref.write_text(repository.commit)


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _git_sha1(path: Path) -> str:
    """By which the cache names small files: https://git-scm.com/book/en/v2/Git-Internals-Git-Objects."""
    digest = hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _storage(repo: str) -> Path:
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    return Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repo, repo_type="model")

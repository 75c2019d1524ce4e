"""What a reference says, before anything is looked at but whether a path exists."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from lcmmerge.errors import NotFoundError
from lcmmerge.refs.files import is_inside

HUB = "hf://"
HUB_FORM = "hf://owner/repo[@revision][/path/in/repo]"
EMBEDDED = "zoo:"
LONGEST = 1024  # bytes of a revision or of a name on the Hub
LONGEST_PART = 255  # between two slashes; what file systems take
_ZOO = Path(__file__).parents[1] / "zoo"
_URL = re.compile(r"hf://|https?://|(huggingface|hf)\.co/")
_CREDENTIALS = re.compile(r"https?://[^/?#]*@")
_LIKE_HUB = re.compile(r"\w[\w.-]*(/\w[\w.-]*)+")


@dataclass(frozen=True, slots=True)
class Reference:
    """A path, or a place on the Hub, as a user wrote it.

    ``text``: as given. Local: ``path``, of a file or folder that is there.

    Hub: ``repo`` (``owner/name``), ``revision`` (branch, tag or commit; None is the default branch) and
    ``path_in_repo``, of a file or folder; "" is the whole repository.
    """

    text: str
    kind: Literal["local", "hub"]
    path: Path = Path()
    repo: str = ""
    revision: str | None = None
    path_in_repo: str = ""

    @property
    def name(self) -> str:
        """The file's or folder's; of a whole repository its own."""
        return name_of(self.path) if self.kind == "local" else (self.path_in_repo or self.repo).rpartition("/")[2]

    def at(self, commit: str) -> str:
        """The same place at a commit: ``hf://owner/repo@commit/path``."""
        return f"{HUB}{self.repo}@{commit}" + (f"/{self.path_in_repo}" if self.path_in_repo else "")


def parse(reference: str, subject: str = "file") -> Reference:
    """An existing path, ``hf://owner/repo[@revision][/path]``, or a page's URL pasted from the Hub.

    ``~`` is the home folder. ``zoo:digits/base`` is a path in the models that ship with lcmmerge, wherever that is
    installed. A missing ``owner/repo`` is never guessed to be on the Hub. ``subject`` is what messages call the thing
    ("base", "adapter").
    Raises NotFoundError.
    """
    what = f"{subject} {reference!r}"
    embedded, name = reference.startswith(EMBEDDED), reference.removeprefix(EMBEDDED)
    if embedded and not is_inside(name.rstrip("/")):
        raise NotFoundError(f"{what}: steps out of the models that ship with lcmmerge", "check the path")
    path = _ZOO / name if embedded else at_home(reference)
    if not reference.startswith(HUB) and _exists(path):
        if not (path.is_file() or path.is_dir()):  # reading a pipe could wait forever
            raise NotFoundError(f"{what}: is neither a file nor a folder", "check the path")
        return Reference(reference, "local", path)
    if _CREDENTIALS.match(reference):  # it would stand in messages, and in what is written
        raise NotFoundError(f"{subject}: its URL has a name or a password in it", "set HF_TOKEN, or `hf auth login`")
    if _URL.match(reference):
        return _hub(reference, what)
    hint = f"if it is on the Hub, name it {HUB}{reference}" if _LIKE_HUB.fullmatch(reference) else "check the path"
    raise NotFoundError(f"{what}: no such file or folder", hint)


def at_home(reference: str) -> Path:
    """The path, in which ``~`` is the home folder, as in a shell: recipes, GUIs and Python expand none."""
    path = Path(reference)
    if reference.startswith("~") and not _exists(path):
        with suppress(RuntimeError):  # of a user that is not there
            return path.expanduser()
    return path


def _exists(path: Path) -> bool:
    """Whatever the text is: too long for a path, say, or with a NUL."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def check_endpoint() -> None:
    """Raises NotFoundError where HF_ENDPOINT is malformed: huggingface_hub could not be imported, nor diffusers."""
    try:
        _ = urlsplit(os.environ.get("HF_ENDPOINT", "")).port
    except ValueError:  # its text has a piece of the URL, maybe of a password
        raise NotFoundError("HF_ENDPOINT is not a URL", "unset it, or write it as https://host") from None


def _hub(reference: str, what: str) -> Reference:
    check_endpoint()
    from huggingface_hub import parse_hf_uri
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    form = f"the form is {HUB_FORM}"
    try:
        uri = parse_hf_uri(reference)
        validate_repo_id(uri.id)
    except ValueError:  # the base of both functions' own
        raise NotFoundError(f"{what}: not a Hub reference", form) from None
    if uri.type != "model":
        raise NotFoundError(f"{what}: names a {uri.type}, not a model", form)
    path = uri.path_in_repo.rstrip("/")
    if not all(is_name(name) for name in (path, uri.revision) if name):
        raise NotFoundError(f"{what}: steps out of the repository", form)
    return Reference(reference, "hub", repo=uri.id, revision=uri.revision, path_in_repo=path)


def name_of(path: Path) -> str:
    """A file's or folder's name; the repository's for a snapshot in the cache, whose folder is named for its commit."""
    in_cache = path.parent.name == "snapshots" and path.parent.parent.name.startswith("models--")
    return path.parent.parent.name.rpartition("--")[2] if in_cache else path.name


def is_name(text: str) -> bool:
    """Whether a revision or a file of a repository may be called so: it names a place in a folder, on every disk."""
    try:
        parts = text.encode().split(b"/")
    except UnicodeEncodeError:  # of JSON's "\\ud800"
        return False
    fits = sum(map(len, parts)) <= LONGEST and all(len(part) <= LONGEST_PART for part in parts)
    return fits and is_inside(text) and not text.startswith("-")


def hub_reference(path: Path) -> str | None:
    """Of a path in huggingface_hub's cache: ``models--owner--repo/snapshots/COMMIT/path``."""
    for snapshots in path.parents:
        if snapshots.name == "snapshots" and snapshots.parent.name.startswith("models--"):
            repo = snapshots.parent.name.removeprefix("models--").replace("--", "/", 1)
            commit, *inner = path.relative_to(snapshots).parts
            return "/".join([f"{HUB}{repo}@{commit}", *inner])
    return None

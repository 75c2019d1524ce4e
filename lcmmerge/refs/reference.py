"""What a reference says, before anything is looked at but whether a path exists."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lcmmerge.errors import NotFoundError

HUB = "hf://"
HUB_FORM = "hf://owner/repo[@revision][/path/in/repo]"
EMBEDDED = "zoo:"
_ZOO = Path(__file__).parents[1] / "zoo"
_URL = re.compile(r"hf://|https?://|(huggingface|hf)\.co/")
_LIKE_HUB = re.compile(r"\w[\w.-]*(/\w[\w.-]*)+")


@dataclass(frozen=True, slots=True)
class Reference:
    """``text``: as given. Local: ``path``, of a file or folder that is there.

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

    ``zoo:digits/base`` is a path in the models that ship with lcmmerge, wherever that is installed. A missing
    ``owner/repo`` is never guessed to be on the Hub. ``subject`` is what messages call the thing ("base", "adapter").
    Raises NotFoundError.
    """
    embedded = reference.startswith(EMBEDDED)
    path = _ZOO / reference.removeprefix(EMBEDDED) if embedded else Path(reference)
    if not reference.startswith(HUB) and path.exists():
        if not (path.is_file() or path.is_dir()):  # reading a pipe could wait forever
            raise NotFoundError(f"{subject} {reference!r}: is neither a file nor a folder", "check the path")
        return Reference(reference, "local", path)
    if _URL.match(reference):
        return _hub(reference, f"{subject} {reference!r}")
    hint = f"if it is on the Hub, name it {HUB}{reference}" if _LIKE_HUB.fullmatch(reference) else "check the path"
    raise NotFoundError(f"{subject} {reference!r}: no such file or folder", hint)


def _hub(reference: str, what: str) -> Reference:
    from huggingface_hub import parse_hf_uri
    from huggingface_hub.errors import HfUriError

    form = f"the form is {HUB_FORM}"
    try:
        uri = parse_hf_uri(reference)
    except HfUriError:
        raise NotFoundError(f"{what}: not a Hub reference", form) from None
    if uri.type != "model":
        raise NotFoundError(f"{what}: names a {uri.type}, not a model", form)
    path = uri.path_in_repo.rstrip("/")
    if steps_out(path) or steps_out(uri.revision or ""):
        raise NotFoundError(f"{what}: steps out of the repository", form)
    return Reference(reference, "hub", repo=uri.id, revision=uri.revision, path_in_repo=path)


def name_of(path: Path) -> str:
    """A file's or folder's name; the repository's for a snapshot in the cache, whose folder is named for its commit."""
    in_cache = path.parent.name == "snapshots" and path.parent.parent.name.startswith("models--")
    return path.parent.parent.name.rpartition("--")[2] if in_cache else path.name


def steps_out(path: str) -> bool:
    """Whether a name in a repository leads out of it."""
    return "\\" in path or any(part in (".", "..") for part in path.split("/"))

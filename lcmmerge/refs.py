"""Where things are: a path, or ``hf://owner/repo[@revision][/path/in/repo]`` on the Hub or in its cache.

huggingface_hub's environment variables apply: HF_HOME, HF_TOKEN, HF_ENDPOINT, HF_HUB_OFFLINE.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from lcmmerge.errors import NotFoundError

HUB = "hf://"
HUB_FORM = "hf://owner/repo[@revision][/path/in/repo]"
# A pipeline's small files: configs, scheduler, tokenizers. `*` also matches across folders.
CONFIG_PATTERNS = ("*.json", "*merges.txt")


def resolve(reference: str, subject: str = "file", patterns: Sequence[str] | None = None) -> Path:
    """The local path of a file or folder, fetched where it is a Hub reference.

    ``subject`` is what the messages call it ("base", "adapter"). A Hub reference without a path is the whole
    repository's folder, of which only the files that match ``patterns`` are fetched. Raises NotFoundError.
    """
    if reference.startswith(HUB):
        return _fetch(reference, subject, patterns)
    path = Path(reference)
    if not path.exists():
        hub_like = re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)+", reference)
        hint = f"if it is on the Hub, name it {HUB}{reference}" if hub_like else "check the path"
        raise NotFoundError(f"{subject} {reference!r}: no such file or folder", hint)
    return path


def configs(reference: str) -> Path:
    """A folder with a pipeline's small files: model_index.json, configs, tokenizers. Raises NotFoundError."""
    folder = resolve(reference, "configs", CONFIG_PATTERNS)
    if not (folder / "model_index.json").is_file():
        raise NotFoundError(f"configs {reference!r}: no model_index.json in it", "name a diffusers pipeline")
    return folder


def _fetch(reference: str, subject: str, patterns: Sequence[str] | None) -> Path:
    from huggingface_hub import hf_hub_download, parse_hf_uri, snapshot_download
    from huggingface_hub.errors import HfUriError

    what = f"{subject} {reference!r}"
    try:
        uri = parse_hf_uri(reference)
    except HfUriError:
        raise NotFoundError(f"{what}: not a Hub reference", f"the form is {HUB_FORM}") from None
    if uri.type != "model":
        raise NotFoundError(f"{what}: names a {uri.type}, not a model", f"the form is {HUB_FORM}")
    allow = list(patterns) if patterns else None
    try:
        if uri.path_in_repo:
            return Path(hf_hub_download(uri.id, uri.path_in_repo, revision=uri.revision))
        return Path(snapshot_download(uri.id, revision=uri.revision, allow_patterns=allow))
    except Exception as error:  # the Hub client's own errors, its HTTP library's and the disk's share no base
        raise _explained(error, what, uri.id) from error


def _explained(error: Exception, what: str, repo: str) -> NotFoundError:
    """One line of our own: huggingface_hub's messages run over many, with request ids and links."""
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    page = f"{constants.ENDPOINT}/{repo}"
    match error:
        case LocalEntryNotFoundError() if constants.HF_HUB_OFFLINE:
            cause, cure = "not in the cache, and HF_HUB_OFFLINE is set", "unset it, or name a local path"
        case LocalEntryNotFoundError():
            cause = f"not in the cache, and {constants.ENDPOINT} cannot be reached"
            cure = "check the network and HF_ENDPOINT, or name a local path"
        case GatedRepoError():
            cause, cure = "its repository is gated", f"accept the terms at {page}, then `hf auth login`"
        case RepositoryNotFoundError():
            cause, cure = "no such repository", "check its name; a private one needs `hf auth login`"
        case RevisionNotFoundError():
            cause, cure = "no such revision", f"see {page}"
        case EntryNotFoundError():
            cause, cure = "no such file in the repository", f"see {page}"
        case _:
            cause, cure = f"cannot be fetched ({type(error).__name__})", "try again, or name a local path"
    return NotFoundError(f"{what}: {cause}", cure)

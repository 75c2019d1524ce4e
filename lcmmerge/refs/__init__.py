"""Where things are: a path, ``hf://owner/repo[@revision][/path/in/repo]``, or the URL of a page on the Hub.

huggingface_hub's environment variables apply: HF_HOME, HF_TOKEN, HF_ENDPOINT, HF_HUB_OFFLINE. Its cache is used, only
the files that are needed are downloaded, and each is checked against the sha256 that the Hub records.
"""

from __future__ import annotations

from pathlib import Path

from lcmmerge.errors import NotFoundError
from lcmmerge.refs.http import RemoteFile
from lcmmerge.refs.hub import Awaited, HubFile, Repository, fetch, remember, repository
from lcmmerge.refs.pins import Pin, PinnedFile, pin
from lcmmerge.refs.reference import HUB, HUB_FORM, Reference, name_of, parse
from lcmmerge.refs.weights import MODEL_INDEX, small_files

__all__ = [
    "HUB",
    "HUB_FORM",
    "Awaited",
    "HubFile",
    "Pin",
    "PinnedFile",
    "Reference",
    "RemoteFile",
    "Repository",
    "configs",
    "fetch",
    "name_of",
    "parse",
    "pin",
    "remember",
    "repository",
    "resolve",
]


def resolve(reference: str, subject: str = "file", variant: str | None = None) -> Path:
    """The local path of a file or folder, downloaded where it is on the Hub and not in the cache.

    Of a folder only the weights (of ``variant``) and the small files are. ``subject`` is what the messages call it
    ("base", "adapter"). Raises NotFoundError, FormatError.
    """
    parsed = parse(reference, subject)
    if parsed.kind == "local":
        return parsed.path
    found = repository(parsed, subject)
    fetch(found, found.needed(variant))
    remember(found)
    return found.path(parsed.path_in_repo)


def configs(reference: str, *, tokenizers: bool = True) -> Path:
    """A folder with a pipeline's small files: model_index.json, configs, and its ``tokenizers``, the most of it.

    Raises NotFoundError.
    """
    parsed = parse(reference, "configs")
    folder = parsed.path
    if parsed.kind == "hub":
        found = repository(parsed, "configs")
        folder = found.path(parsed.path_in_repo)
        names = [name for name in small_files(found.tree()) if tokenizers or not name.startswith("tokenizer")]
        fetch(found, map(found.within, names))
        remember(found)
    if not (folder / MODEL_INDEX).is_file():
        raise NotFoundError(f"configs {reference!r}: no model_index.json in it", "name a diffusers pipeline")
    return folder

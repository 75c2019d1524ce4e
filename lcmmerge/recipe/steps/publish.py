"""Outputs to a repository on the Hub, in one commit, and only when that is asked for."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

from pydantic import Field

from lcmmerge.errors import RecipeError
from lcmmerge.recipe.manifest import RunManifest
from lcmmerge.refs.faults import harmless, unpublished
from lcmmerge.refs.files import inside

Published = Annotated[str, Field(pattern=r"^hf://[\w.-]+/[\w.-]+$")]


def repository(publish: Published | None) -> str:
    """``owner/repo``. Raises RecipeError where the recipe does not say it."""
    if publish is None:
        raise RecipeError("--publish: the recipe does not say where to", "add `publish: hf://owner/repo` to it")
    return publish.removeprefix("hf://")


def upload(repo: str, out: Path, manifest: RunManifest) -> str:
    """The commit's URL. One output becomes the repository itself, several a folder each.

    What the Hub holds already is not sent again, so that an upload that was cut goes on. Raises OutputError,
    FormatError of a link.
    """
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.utils import disable_progress_bars  # type: ignore[attr-defined]

    if not sys.stderr.isatty():
        disable_progress_bars()
    only = f"{manifest.folders[0]}/" if len(manifest.folders) == 1 else ""
    names = sorted(path for found in manifest.steps.values() for path in found.outputs)
    files = {name.removeprefix(only): inside(out, name) for name in names}
    try:
        api = HfApi()
        api.create_repo(repo, exist_ok=True)
        # Not upload_folder, which cuts large folders into several commits.
        operations = [CommitOperationAdd(name, path) for name, path in files.items()]
        commit = api.create_commit(repo, operations, commit_message=f"lcmmerge run {manifest.recipe['name']}")
    except Exception as error:  # the Hub client's own errors, its HTTP library's and the disk's share no base
        raise unpublished(error, f"publish {repo!r}", repo) from error
    return harmless(str(commit.commit_url))

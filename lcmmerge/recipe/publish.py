"""Outputs to a repository on the Hub, in one commit, and only when that is asked for."""

from __future__ import annotations

from pathlib import Path

from lcmmerge.errors import OutputError, RecipeError
from lcmmerge.recipe.manifest import NAME, Manifest
from lcmmerge.recipe.schema import Recipe
from lcmmerge.refs.faults import explained


def repository(recipe: Recipe, *, wanted: bool) -> str | None:
    """``owner/repo``, None where nothing is to be published. Raises RecipeError."""
    if not wanted:
        return None
    if recipe.publish is None:
        raise RecipeError("--publish: the recipe does not say where to", "add `publish: hf://owner/repo` to it")
    return recipe.publish.removeprefix("hf://")


def upload(repo: str, out: Path, manifest: Manifest) -> str:
    """The commit's URL. One output becomes the repository itself, several a folder each.

    What the repository holds already is not sent again. Raises OutputError.
    """
    from huggingface_hub import HfApi

    only = manifest.folders[0] if len(manifest.folders) == 1 else None
    files = [path for found in manifest.steps.values() for path in found.outputs]
    try:
        api = HfApi()
        api.create_repo(repo, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repo,
            folder_path=out / only if only else out,
            allow_patterns=[path.removeprefix(f"{only}/") for path in files] if only else [*files, NAME],
            commit_message=f"lcmmerge run {manifest.recipe['name']}",
        )
    except Exception as error:  # the Hub client's own errors, its HTTP library's and the disk's share no base
        fault = explained(error, f"publish {repo!r}", repo)
        raise OutputError(fault.message, fault.hint) from error
    return str(commit.commit_url)

"""Where on the Hub the sources of a merge are; of those on this disk nothing is told but their names."""

from __future__ import annotations

from pathlib import Path

from lcmmerge.merge.plan import Plan
from lcmmerge.refs import HUB


def references_of(plan: Plan) -> dict[str, str]:
    """``base``, ``terms.0``, … → ``hf://owner/repo@commit/path``, of the sources in the Hub's cache."""
    found = {name: hub_reference(source.path) for name, source in plan.sources.items()}
    return {name: reference for name, reference in found.items() if reference}


def hub_reference(path: Path) -> str | None:
    """Of a path in huggingface_hub's cache: ``models--owner--repo/snapshots/COMMIT/path``."""
    for snapshots in path.parents:
        if snapshots.name == "snapshots" and snapshots.parent.name.startswith("models--"):
            repo = snapshots.parent.name.removeprefix("models--").replace("--", "/", 1)
            commit, *inner = path.relative_to(snapshots).parts
            return "/".join([f"{HUB}{repo}@{commit}", *inner])
    return None

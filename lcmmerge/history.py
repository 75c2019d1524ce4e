"""What files record of how they were made: the recipe, and of each model that went in what that was merged by.

As Stable Diffusion web UIs write and read them: ``sd_merge_recipe``, and ``sd_merge_models``, a JSON object by sha256.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from lcmmerge.refs import name_of
from lcmmerge.tensors import TensorSource

RECIPE, MODELS = "sd_merge_recipe", "sd_merge_models"


def model_entry(source: TensorSource, sha256: str | None) -> dict[str, Any]:
    """sha256, or the name → what is known of a model: its name and, as web UIs have it, what it was merged by."""
    name, recipe = name_of(source.path), record_of(source, RECIPE)
    return {sha256 or name: {"name": name, **({RECIPE: recipe} if recipe else {})}}


def recorded_models(source: TensorSource) -> dict[str, Any]:
    """The models that a file's metadata say it was made of."""
    return record_of(source, MODELS)


def older(source: TensorSource) -> dict[str, Mapping[str, Any]]:
    """The name of each model in a file that is a merge itself → what it was merged by."""
    return {
        str(entry.get("name")): entry[RECIPE]
        for entry in recorded_models(source).values()
        if isinstance(entry, dict) and isinstance(entry.get(RECIPE), dict)
    }


def before(sources: Iterable[TensorSource]) -> dict[str, Mapping[str, Any]]:
    """As ``older``, of what is made of these files."""
    found: dict[str, Mapping[str, Any]] = {}
    for source in sources:
        recipe = record_of(source, RECIPE)
        found |= older(source) | ({name_of(source.path): recipe} if recipe else {})
    return found


def formula(recipe: Mapping[str, Any]) -> str:
    """A recipe of ours as ``base + 0.8 × style``; of another program's, whose it is."""
    match recipe:
        case {"type": "lcmmerge extract", "base": {"name": base}, "tuned": {"name": tuned}, "rank": rank}:
            return f"{tuned} − {base}, rank {rank}"
        case {"type": "lcmmerge" | "lcmmerge combine", "terms": [*terms]}:
            base = recipe.get("base")
            first = [base["name"]] if isinstance(base, dict) and isinstance(base.get("name"), str) else []
            return " + ".join([*first, *(_weighed(term) for term in terms)])
        case {"type": str(kind)}:
            return f"merged by {kind}"
        case _:
            return "of an unknown program"


def _weighed(term: object) -> str:
    return f"{term.get('lambda')} × {term.get('name')}" if isinstance(term, dict) else "?"


def record_of(source: TensorSource, key: str) -> dict[str, Any]:
    """The JSON object that a file's metadata hold under ``key``; empty where they hold nothing readable."""
    try:
        recorded = json.loads(source.metadata.get(key, "{}"))
    except (ValueError, RecursionError):
        return {}
    return recorded if isinstance(recorded, dict) else {}


def canonical_json(value: object) -> str:
    """The same value is the same text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)

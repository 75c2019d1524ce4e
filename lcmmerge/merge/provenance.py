"""What an output says about itself: ModelSpec 1.0.1 and the merge recipe, as safetensors metadata.

Strings only, no path but file names, no clock: the same inputs give the same bytes.
ModelSpec: https://github.com/Stability-AI/ModelSpec; ``sd_merge_*`` as Stable Diffusion web UIs write and read them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from lcmmerge.archs import modelspec
from lcmmerge.errors import AlreadyFusedError
from lcmmerge.merge.plan import Plan
from lcmmerge.merge.spec import Source
from lcmmerge.merge.terms import Checkpoint
from lcmmerge.refs import name_of
from lcmmerge.tensors import TensorSource
from lcmmerge.tensors.digest import sha256_of
from lcmmerge.version import __version__

RECIPE, MODELS = "sd_merge_recipe", "sd_merge_models"


def placeholders(sources: Iterable[str]) -> dict[str, str]:
    """As long as the sources' hashes, which are not known before they were read."""
    return {key: key.ljust(64, "0") for key in sources}


def metadata(plan: Plan, hashes: Mapping[str, str], sha256: str) -> dict[str, str]:
    """A file's metadata. ``hashes``: of the plan's sources, as far as known; ``sha256``: of the file's tensor bytes."""
    names = [name_of(plan.base.source.path), *(name_of(term.path) for term in plan.terms)]
    merged = [plan.sources[key].metadata for key in _merged(plan)]
    title = " + ".join(Path(name).stem for name in names)
    return {
        **modelspec.inherited(plan.base.source.metadata),
        **modelspec.triggers(merged),
        **modelspec.spec_of(plan.base, plan.layout, title, sha256),
        "modelspec.merged_from": ", ".join(names),
        RECIPE: canonical_json(recorded(plan, hashes)),
        MODELS: canonical_json(_models(plan, hashes)),
    }


def _merged(plan: Plan) -> list[str]:
    """The names of the sources that the merge holds something of: λ = 0 brings nothing in."""
    idle = {f"terms.{index}" for index, term in enumerate(plan.terms) if not term.strength}
    return [key for key in plan.sources if key not in idle]


def recorded(plan: Plan, hashes: Mapping[str, str]) -> dict[str, Any]:
    """The merge as a file tells it: sources by their names and sha256, the layout that it has."""
    found = plan.sources
    terms = [
        replace(
            term,
            source=_named(found[f"terms.{index}"], hashes.get(f"terms.{index}")),
            blocks=dict(vector.weights.factors),
            made_from=_named(found[origin], hashes.get(origin)) if (origin := f"terms.{index}.base") in found else None,
        )
        for index, (term, vector) in enumerate(zip(plan.merge.terms, plan.terms, strict=True))
    ]
    merge = replace(
        plan.merge,
        base=_named(plan.base.source, hashes.get("base")),
        terms=tuple(terms),
        output=replace(plan.merge.output, layout=plan.layout),
        config_from=None,
    )
    sampling = plan.accelerator.sampling.as_dict() if plan.accelerator else None
    return {**merge.to_dict(), "version": __version__, "sampling": sampling}


def _named(source: TensorSource, sha256: str | None) -> Source:
    return Source(name_of(source.path), sha256, source.variant)


def _models(plan: Plan, hashes: Mapping[str, str]) -> dict[str, Any]:
    """What a merge holds something of. A base whose sha256 nobody knows is there where it is a merge itself."""
    found: dict[str, Any] = {}
    for key in _merged(plan):
        source = plan.sources[key]
        if key in hashes or RECIPE in source.metadata:
            # Of a checkpoint's own models only a difference is added, which may be none of them.
            dense = key != "base" and isinstance(plan.terms[int(key.split(".")[1])].content, Checkpoint)
            found |= {} if dense else recorded_models(source)
            found |= model_entry(source, hashes.get(key))
    return found


def model_entry(source: TensorSource, sha256: str | None) -> dict[str, Any]:
    """sha256, or the name → what is known of a model: its name and, as web UIs have it, what it was merged by."""
    name, recipe = name_of(source.path), record_of(source, RECIPE)
    return {sha256 or name: {"name": name, **({RECIPE: recipe} if recipe else {})}}


def recorded_models(source: TensorSource) -> dict[str, Any]:
    """The models that a file's metadata say it was made of."""
    return record_of(source, MODELS)


def history(source: TensorSource) -> dict[str, Mapping[str, Any]]:
    """The name of each model in a file that is a merge itself → what it was merged by."""
    return {
        str(entry.get("name")): entry[RECIPE]
        for entry in recorded_models(source).values()
        if isinstance(entry, dict) and isinstance(entry.get(RECIPE), dict)
    }


def before(sources: Iterable[TensorSource]) -> dict[str, Mapping[str, Any]]:
    """As ``history``, of what is made of these files."""
    found: dict[str, Mapping[str, Any]] = {}
    for source in sources:
        recipe = record_of(source, RECIPE)
        found |= history(source) | ({name_of(source.path): recipe} if recipe else {})
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


def refuse_fused(plan: Plan) -> None:
    """An adapter that the base already holds would count twice. Raises AlreadyFusedError."""
    recorded = recorded_models(plan.base.source)
    for term in plan.terms if recorded else ():
        if isinstance(term.content, Checkpoint) or not term.strength:
            continue
        if sha256_of(term.content.source.files, known=term.content.source.sha256) in recorded:
            raise AlreadyFusedError(
                f"{term.path}: {plan.base.source.path.name} already holds it, by its own metadata",
                "start from the unmerged base, or fuse it once more with --force",
            )


def canonical_json(value: object) -> str:
    """The same value is the same text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)

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

from lcmmerge.archs import Model
from lcmmerge.errors import AlreadyFusedError
from lcmmerge.merge.plan import Plan
from lcmmerge.merge.spec import Source
from lcmmerge.merge.terms import Checkpoint
from lcmmerge.refs import name_of
from lcmmerge.refs.weights import DIFFUSERS, SINGLE_FILE
from lcmmerge.tensors import TensorSource
from lcmmerge.tensors.digest import sha256_of
from lcmmerge.version import __version__

RECIPE, MODELS = "sd_merge_recipe", "sd_merge_models"
HASH = "modelspec.hash_sha256"
IMPLEMENTATIONS = {
    SINGLE_FILE: "https://github.com/Stability-AI/generative-models",
    DIFFUSERS: "https://github.com/huggingface/diffusers",
    "component": "https://github.com/huggingface/diffusers",
}


def placeholders(sources: Iterable[str]) -> dict[str, str]:
    """As long as the sources' hashes, which are not known before they were read."""
    return {key: key.ljust(64, "0") for key in sources}


def metadata(plan: Plan, hashes: Mapping[str, str], sha256: str) -> dict[str, str]:
    """A file's metadata. ``hashes``: of the plan's sources, as far as known; ``sha256``: of the file's tensor bytes."""
    names = [name_of(plan.base.source.path), *(name_of(term.path) for term in plan.terms)]
    inherited = {key: value for key, value in plan.base.source.metadata.items() if key != HASH}
    return inherited | {
        "format": "pt",
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": _architecture(plan.base),
        "modelspec.implementation": IMPLEMENTATIONS[plan.layout],
        "modelspec.title": " + ".join(Path(name).stem for name in names),
        "modelspec.merged_from": ", ".join(names),
        HASH: f"0x{sha256}",
        RECIPE: canonical_json(recorded(plan, hashes)),
        MODELS: canonical_json(_models(plan, hashes)),
    }


def _architecture(base: Model) -> str:
    return base.arch.modelspec + ("" if base.purpose == "base" else f"/{base.purpose}")


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
    """sha256 → what is known of a model, with those that went into the base before; λ = 0 brings nothing in."""
    idle = {f"terms.{index}" for index, term in enumerate(plan.terms) if not term.strength}
    now = {hashes[key]: {"name": name_of(plan.sources[key].path)} for key in hashes if key not in idle}
    return recorded_models(plan.base.source) | now


def recorded_models(source: TensorSource) -> dict[str, Any]:
    """The models that a checkpoint's metadata says it was made of."""
    return record_of(source, MODELS)


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

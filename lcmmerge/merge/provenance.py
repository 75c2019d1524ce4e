"""What an output says about itself: ModelSpec 1.0.1 and the merge recipe, as safetensors metadata.

Strings only, no path but file names, no clock: the same inputs give the same bytes.
ModelSpec: https://github.com/Stability-AI/ModelSpec; ``sd_merge_*`` as Stable Diffusion web UIs write and read them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from lcmmerge.archs import modelspec
from lcmmerge.errors import AlreadyFusedError
from lcmmerge.history import MODELS, RECIPE, canonical_json, model_entry, recorded_models
from lcmmerge.merge.plan import PARTS, Plan
from lcmmerge.merge.spec import Source
from lcmmerge.refs import name_of
from lcmmerge.tensors import TensorSource
from lcmmerge.tensors.digest import sha256_of
from lcmmerge.terms.match import Checkpoint
from lcmmerge.version import __version__


def placeholders(sources: Iterable[str]) -> dict[str, str]:
    """As long as the sources' hashes, which are not known before they were read."""
    return {key: key.ljust(64, "0") for key in sources}


def metadata(plan: Plan, hashes: Mapping[str, str], sha256: str) -> dict[str, str]:
    """A file's metadata. ``hashes``: of the plan's sources, as far as known; ``sha256``: of the file's tensor bytes."""
    names = [name_of(plan.base.source.path), *(name_of(term.path) for term in plan.terms)]
    merged = [plan.sources[key].metadata for key in _merged(plan) if key != PARTS]
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
        parts_from=_named(plan.lender.source, hashes.get(PARTS)) if plan.lender else None,
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
            # Of a checkpoint's own models only a difference is added, which may be none of them; of one that completes
            # the base, a VAE perhaps.
            dense = key.startswith("terms.") and isinstance(plan.terms[int(key.split(".")[1])].content, Checkpoint)
            found |= {} if dense or key == PARTS else recorded_models(source)
            found |= model_entry(source, hashes.get(key))
    return found


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

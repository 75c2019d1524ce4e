"""From a recipe's cells to plans of merges: headers only. A base that several cells share is read once."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lcmmerge import refs
from lcmmerge.accelerators import Accelerator
from lcmmerge.archs import Model, identify
from lcmmerge.errors import LockError, RecipeError
from lcmmerge.merge import provenance
from lcmmerge.merge.methods import parse
from lcmmerge.merge.outcome import Settings
from lcmmerge.merge.plan import Plan, plan
from lcmmerge.merge.spec import ADD, Merge, Source, Term, Written
from lcmmerge.recipe.loader import MatrixCell
from lcmmerge.recipe.lock import RELOCK
from lcmmerge.recipe.schema import Fuse, RecipeTerm
from lcmmerge.recipe.sources import Found, Sources
from lcmmerge.refs.weights import DIFFUSERS
from lcmmerge.tensors import TensorSource
from lcmmerge.tensors.digest import sha256_of
from lcmmerge.tensors.remote import open_reference
from lcmmerge.version import __version__

VERSION = 1  # of what a fuse step writes; a change makes finished steps stale


@dataclass(frozen=True, slots=True)
class Input:
    """A source and its headers; of one that gives its configs alone where those are."""

    found: Found
    path: Path
    opened: TensorSource | None


@dataclass(frozen=True, slots=True)
class Build:
    """One output's merge. ``key``: sha256 of everything its bytes depend on; ``inputs``: role → source."""

    cell: MatrixCell
    plan: Plan
    settings: Settings
    inputs: Mapping[str, Input]
    key: str


def builds(
    cells: tuple[MatrixCell, ...], sources: Sources, out: Path, settings: Settings, *, dry_run: bool
) -> tuple[Build, ...]:
    """No weights are downloaded yet, and for a ``dry_run`` neither pickles nor tokenizers.

    Raises NotFoundError, FormatError, RecipeError, and every IncompatibleError.
    """
    inputs = {name: _input(found, dry_run=dry_run) for name, found in sources.items()}
    settings = replace(settings, keep_inputs=len(cells) > 1)  # the base is read once from the disk, for all of them
    models = {name: identify(_opened(inputs[name])) for name in dict.fromkeys(cell.fuse.base for cell in cells)}
    return tuple(_build(cell, models[cell.fuse.base], inputs, out, settings) for cell in cells)


def refuse_drifted(build: Build) -> None:
    """Read every source anew: a failing disk, or a damaged cache, shows in the bytes alone. Raises LockError."""
    drifted = [
        f"{item.found.name}: {file} has another sha256"
        for item in build.inputs.values()
        for name, sha256 in item.found.locked.hashes.items()
        if (file := (item.path if item.path.is_dir() else item.path.parent) / name).is_file()
        and sha256_of([file], reread=True) != sha256
    ]
    if drifted:
        raise LockError(f"{build.cell.name}: its sources are not those of the lock", RELOCK, drifted)


def _input(found: Found, *, dry_run: bool) -> Input:
    if found.configs:
        return Input(found, refs.configs(found.reference, tokenizers=not dry_run), None)
    source = open_reference(found.reference, found.name, found.locked.variant, pickles=not dry_run)
    if found.states:  # what is on the Hub has its hashes from there
        folder = source.path if source.path.is_dir() else source.path.parent
        known = {folder / file: sha256 for file, sha256 in found.locked.hashes.items()}
        source = replace(source, sha256=known, states={**source.states, **found.states})
    return Input(found, source.path, source)


def _opened(item: Input) -> TensorSource:
    assert item.opened is not None  # a base or a term: not for its configs alone
    return item.opened


def _build(cell: MatrixCell, base: Model, inputs: Mapping[str, Input], out: Path, settings: Settings) -> Build:
    fuse = cell.fuse
    layout = fuse.layout or base.layout
    roles = _roles(fuse, inputs)
    configs = None
    if layout == DIFFUSERS != base.layout:
        if fuse.config_from is None:
            raise RecipeError(
                f"{cell.name}: fuse.layout is diffusers and the base is not: fuse.config_from is missing",
                f"name a source with the configs, such as hf://{base.arch.hub}",
            )
        configs = roles["config_from"].path
    seed = fuse.seed if fuse.rounding == "stochastic" else None
    target = out / cell.name / f"{cell.name}.safetensors" if layout != DIFFUSERS else out / cell.name
    key = _key(cell, roles, layout, _accelerator(fuse, roles), settings, seed)
    method, parameters = parse(fuse.method)
    merge = Merge(
        _source(roles["base"]),
        [_term(name, term, roles) for name, term in fuse.terms.items()],
        method,
        output=Written(target, fuse.layout, fuse.dtype, fuse.max_shard_size, fuse.drop_ema, seed),
        config_from=str(configs) if configs else None,
        allow_unmatched=fuse.allow_unmatched,
        recipe=key,
        parameters=parameters,
    )
    opened = {_source(item): item for item in roles.values()}
    planned = plan(merge, opened=lambda source, _: _opened(opened[source]), base=base)
    return Build(cell, planned, settings, roles, key)


def _roles(fuse: Fuse, sources: Mapping[str, Input]) -> dict[str, Input]:
    """``base``, ``terms.style``, ``terms.style.tuned_from``, ``config_from`` → source."""
    roles = {"base": sources[fuse.base]}
    for name, term in fuse.terms.items():
        roles[f"terms.{name}"] = sources[term.source or name]
        if term.tuned_from:
            roles[f"terms.{name}.tuned_from"] = sources[term.tuned_from]
    if fuse.config_from:
        roles["config_from"] = sources[fuse.config_from]
    return roles


def _source(item: Input) -> Source:
    """By its reference, not its path: what was baked before may have left the Hub's cache since."""
    return Source(item.found.reference, variant=item.found.locked.variant)


def _term(name: str, term: RecipeTerm, roles: Mapping[str, Input]) -> Term:
    item, tuned_from = roles[f"terms.{name}"], roles.get(f"terms.{name}.tuned_from")
    return Term(
        name,
        _source(item),
        term.strength,
        term.block_weights or {},
        _source(tuned_from) if tuned_from else None,
        item.found.accelerator.name if item.found.accelerator else None,
    )


def _accelerator(fuse: Fuse, roles: Mapping[str, Input]) -> Accelerator | None:
    """What the result is drawn with: the first term that is an accelerator, unless its λ is 0."""
    kinds = (roles[f"terms.{name}"].found.accelerator for name, term in fuse.terms.items() if term.strength)
    return next(filter(None, kinds), None)


def _key(
    cell: MatrixCell, roles: Mapping[str, Input], layout: str, kind: Accelerator | None, settings: Settings,
    seed: int | None,
) -> str:  # fmt: skip
    """File names count: the output's metadata tell them."""
    fuse = cell.fuse
    return step_key("fuse", VERSION, {
        "output": cell.name,
        "layout": layout,
        "inputs": {
            role: {"name": refs.name_of(item.path), "files": item.found.locked.hashes} for role, item in roles.items()
        },
        "terms": [
            {"name": name, "lambda": term.strength, "block_weights": term.block_weights}
            for name, term in fuse.terms.items()
        ],
        "options": fuse.model_dump(include={"dtype", "drop_ema", "max_shard_size", "allow_unmatched"}),
        "sampling": kind.sampling.as_dict() if kind else None,
        "rounding_seed": seed,
        **({"method": fuse.method} if fuse.method != ADD else {}),
        "device": settings.device.partition(":")[0],
    })  # fmt: skip


def step_key(kind: str, version: int, content: Mapping[str, Any]) -> str:
    """sha256 of a step's inputs and parameters, and of our version of it."""
    text = provenance.canonical_json({"step": kind, "version": f"{__version__}/{version}", **content})
    return hashlib.sha256(text.encode()).hexdigest()

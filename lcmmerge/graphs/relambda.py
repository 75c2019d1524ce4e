"""Another λ for an export that is there: weight files are written anew by the merge engine, and no graph is touched.

A graph knows of its weights where they lie in a file, and that a λ does not change. A file is written beside the old
one and takes its name at the end: a session that maps the old file keeps it. While they take their names, one after
another, the manifest says ``unfinished``; a run that was cut off there is made good by the next.
The weights are those of the merge exported at the new λ: rounded once, to the export's dtype, whatever the dtype of the
checkpoint that it was first baked in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lcmmerge.errors import IncompatibleError, LcmMergeError, VerificationError
from lcmmerge.graphs import manifest as manifests
from lcmmerge.graphs.extra import GRAPHS, check_installed
from lcmmerge.graphs.link import check_link
from lcmmerge.graphs.manifest import Manifest, read_manifest
from lcmmerge.graphs.targets import named
from lcmmerge.graphs.weights import described, header, plan_weights, source_of
from lcmmerge.merge.execute import execute
from lcmmerge.merge.outcome import Settings
from lcmmerge.merge.plan import Plan
from lcmmerge.merge.recorded import Recipe, replan
from lcmmerge.merge.report import Row, rows
from lcmmerge.merge.tensors import merged
from lcmmerge.merge.terms import check_strength
from lcmmerge.output import Output
from lcmmerge.tensors import open_source
from lcmmerge.tensors.digest import sha256_of
from lcmmerge.tensors.dtypes import OUTPUT_DTYPES
from lcmmerge.tensors.staging import Staging

SAMPLES = 8  # parameters by which a base without a recorded hash is told


@dataclass(frozen=True, slots=True)
class Rewritten:
    """``files``: the weight files that were written. ``removed``: engines, which hold weights of the old λ."""

    manifest: Manifest
    files: tuple[str, ...]
    removed: tuple[str, ...]
    rows: tuple[Row, ...]


def relambda(
    folder: Path,
    strengths: Mapping[str, float],
    places: Sequence[str],
    output: Output,
    settings: Settings = Settings(),  # noqa: B008 - frozen
) -> Rewritten:
    """``strengths``: term → λ; the others keep theirs. ``places``: where to look for the sources, as ``verify`` does.

    Raises NotFoundError, VerificationError (a source is not the one that was merged), IncompatibleError (nothing was
    merged), OutputError, NumericError, FormatError.
    """
    before = read_manifest(folder, unfinished=True)
    check_installed(*GRAPHS)
    for graph in before.graphs:
        check_link(folder / graph)
    recipe = before.merge
    _check_terms(folder, recipe, strengths)
    places = [*places, str(folder.parent), *before.references.values()]
    if recipe.base.sha256 is None:
        before = _hashed(before, _plan(before, recipe, folder, places), folder)
    terms = tuple(replace(term, strength=strengths.get(term.name, term.strength)) for term in recipe.terms)
    plan = _plan(before, replace(recipe, terms=terms), folder, places)
    settings = replace(settings, rounding_seed=recipe.rounding_seed)
    plan.fetch()
    with Staging(folder) as staging:
        for file in plan.files:
            (staging.folder / file.path.parent).mkdir()
        with output.progress("weights", plan.nbytes) as progress:
            outcome = execute(plan, staging.folder, header, settings, progress, whole_files=True)
        found = rows(plan, {layer.name: layer for layer in outcome.layers}.values())
        for file in plan.files:
            _check_header(staging.folder / file.path, folder / file.path)
        manifest = _changed(before, strengths)
        _replace(replace(manifest, unfinished=True), staging.folder, folder)
        for file in plan.files:
            (staging.folder / file.path).replace(folder / file.path)
        manifest, removed = _describe(manifest, folder, described(plan, outcome, folder))
        _replace(manifest, staging.folder, folder)
    return Rewritten(manifest, tuple(file.path.as_posix() for file in plan.files), removed, found)


def _check_terms(folder: Path, recipe: Recipe, strengths: Mapping[str, float]) -> None:
    names = [term.name for term in recipe.terms]
    if not names:
        cure = "export BASE and STYLE, or what `lcmmerge fuse` wrote"
        raise IncompatibleError(f"{folder}: was exported of a model that records no merge, so it has no λ", cure)
    if strange := sorted(strengths.keys() - set(names)):
        raise LcmMergeError(f"{folder}: no term of it is called {strange[0]!r}", f"its terms are {', '.join(names)}")
    for name, strength in strengths.items():
        check_strength(name, strength)


def _plan(manifest: Manifest, recipe: Recipe, folder: Path, places: Sequence[str]) -> Plan:
    """The weight files of the components that a term reaches; the others stay as they are."""
    dtypes = {source_of(name): OUTPUT_DTYPES[item["dtype"]] for name, item in manifest.components.items()}
    plan = plan_weights(replan(recipe, folder, places), folder, dtypes)
    reached = {row.component for row in plan.coverage}
    return replace(plan, files=tuple(file for file in plan.files if source_of(file.path.parent.name) in reached))


def _hashed(manifest: Manifest, plan: Plan, folder: Path) -> Manifest:
    """With the base's hash, which `lcmmerge fuse` records only when asked: its weights alone tell a base but once."""
    plan.fetch()
    _refuse_impostor(plan, folder)
    source = plan.base.source
    base = {**manifest.recipe["base"], "sha256": sha256_of(source.files, known=source.sha256)}
    return replace(manifest, recipe={**manifest.recipe, "base": base})


def _refuse_impostor(plan: Plan, folder: Path) -> None:
    """The old λ must give the weights that are there."""
    with merged(plan) as read:
        for file in plan.files:
            there = open_source(folder / file.path)
            for tensor in file.tensors[:: max(len(file.tensors) // SAMPLES, 1)]:
                name = tensor.spec.name
                if not read(tensor.pieces[0].operand.name).equal(there[name].read()):
                    raise VerificationError(
                        f"{plan.base.source.path}: is not the base that was merged: {file.path.parent} {name} differs",
                        "name the base by --source, or export anew",
                    )


def _check_header(written: Path, there: Path) -> None:
    """With the same header every link holds. Raises IncompatibleError."""
    if _header(written) != _header(there):
        cure = "export it anew: another lcmmerge wrote it, or its weights were replaced"
        raise IncompatibleError(f"{there}: its tensors lie elsewhere than a new λ's would", cure)


def _header(path: Path) -> bytes:
    with path.open("rb") as file:
        length = file.read(8)
        return length + file.read(int.from_bytes(length, "little"))


def _changed(manifest: Manifest, strengths: Mapping[str, float]) -> Manifest:
    """What was measured was of other weights."""
    terms: list[dict[str, Any]] = [
        {**term, "lambda": strengths.get(term["term"], term["lambda"])} for term in manifest.recipe["terms"]
    ]
    return replace(manifest, recipe={**manifest.recipe, "terms": terms}, parity={}, image_parity={}, unfinished=False)


def _describe(
    manifest: Manifest, folder: Path, written: Mapping[str, Mapping[str, Any]]
) -> tuple[Manifest, tuple[str, ...]]:
    """The new manifest, after the target's files, some of which are named for the weights."""
    files = {**manifest.files, **written}
    removed = named(manifest.target).write(folder, replace(manifest, files=files))
    weights = {name: said for name, said in files.items() if name.endswith(".safetensors")}
    return replace(manifest, files=manifests.described(folder, manifests.contents(folder), weights)), removed


def _replace(manifest: Manifest, staging: Path, folder: Path) -> None:
    manifest.write(staging)
    (staging / manifests.NAME).replace(folder / manifests.NAME)

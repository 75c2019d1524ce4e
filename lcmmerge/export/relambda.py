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

from lcmmerge.bake.execute import execute
from lcmmerge.bake.outcome import Settings
from lcmmerge.bake.report import ReportRow, rows
from lcmmerge.bake.tensors import merged
from lcmmerge.errors import FormatError, IncompatibleError, LcmMergeError, VerificationError
from lcmmerge.export import manifest as manifests
from lcmmerge.export.manifest import ExportManifest, read_manifest
from lcmmerge.export.targets import named
from lcmmerge.export.weights import described, header, plan_weights, source_of
from lcmmerge.extras import check_installed
from lcmmerge.graphs.link import check_link
from lcmmerge.merge.plan import Plan
from lcmmerge.merge.recorded import replan
from lcmmerge.merge.spec import Merge
from lcmmerge.output import Output
from lcmmerge.refs.files import inside, open_regular
from lcmmerge.tensors import open_source
from lcmmerge.tensors.digest import hashing, sha256_of
from lcmmerge.tensors.dtypes import OUTPUT_DTYPES
from lcmmerge.tensors.staging import Staging

SAMPLES = 8  # parameters by which a base without a recorded hash is told


@dataclass(frozen=True, slots=True)
class Rewritten:
    """What a change of λ did to an export.

    ``files``: the weight files that were written. ``removed``: engines, which hold weights of the old λ.
    """

    manifest: ExportManifest
    files: tuple[str, ...]
    removed: tuple[str, ...]
    rows: tuple[ReportRow, ...]


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
    check_installed("export")
    before = read_manifest(folder, unfinished=True)
    for graph in before.graphs:
        check_link(inside(folder, graph))
    _refuse_links(folder)
    merge = before.merge
    _check_terms(folder, merge, strengths)
    places = [*places, str(folder.parent), *before.references.values()]
    if merge.base.sha256 is None:
        before = _hashed(before, _plan(before, merge, folder, places), folder)
    plan = _plan(before, merge.at(strengths), folder, places)
    plan.fetch()
    there = {file.path.as_posix(): open_source(inside(folder, file.path.as_posix())) for file in plan.files}
    with Staging(folder) as staging, hashing(there) as hashes:
        for file in plan.files:
            (staging.folder / file.path.parent).mkdir()
        with output.progress("weights", plan.nbytes) as progress:
            outcome = execute(plan, staging.folder, header, settings, progress, whole_files=True)
        found = rows(plan, {layer.name: layer for layer in outcome.layers}.values())
        for file in plan.files:
            _check_header(staging.folder / file.path, inside(folder, file.path.as_posix()))
        _refuse_replaced(before, folder, hashes())
        manifest = _changed(before, strengths)
        _replace(replace(manifest, unfinished=True), staging.folder, folder)
        for file in plan.files:
            (staging.folder / file.path).replace(folder / file.path)
        manifest, removed = _describe(manifest, folder, described(plan, outcome, folder))
        _replace(manifest, staging.folder, folder)
    return Rewritten(manifest, tuple(file.path.as_posix() for file in plan.files), removed, found)


def _refuse_links(folder: Path) -> None:
    """Whatever is written takes the place of a file of the export's own, and not of one that a link leads to."""
    if linked := next((path for path in folder.rglob("*") if path.is_symlink()), None):
        raise FormatError(f"{linked}: is a symbolic link", "put what it leads to in its place")


def _refuse_replaced(manifest: ExportManifest, folder: Path, hashes: Mapping[str, str]) -> None:
    """A weight file that is not the recorded one is not ours to replace; half a change of λ has files of two λs."""
    for name, sha256 in hashes.items():
        if not manifest.unfinished and sha256 != manifest.files[name]["sha256"]:
            what = f"{folder / name}: is not the file that was exported: its sha256 differs"
            raise VerificationError(what, "export the model again; this file would be lost")


def _check_terms(folder: Path, merge: Merge, strengths: Mapping[str, float]) -> None:
    names = [term.name for term in merge.terms]
    if not names:
        cure = "export BASE and STYLE, or what `lcmmerge fuse` wrote"
        raise IncompatibleError(f"{folder}: was exported of a model that records no merge, so it has no λ", cure)
    if strange := sorted(strengths.keys() - set(names)):
        raise LcmMergeError(f"{folder}: no term of it is called {strange[0]!r}", f"its terms are {', '.join(names)}")


def _plan(manifest: ExportManifest, merge: Merge, folder: Path, places: Sequence[str]) -> Plan:
    """The weight files of the components that a term reaches; the others stay as they are."""
    dtypes = {source_of(name): OUTPUT_DTYPES[item["dtype"]] for name, item in manifest.components.items()}
    planned = replan(merge, folder, places)
    if dtypes.keys() != {*planned.base.arch.components}:
        raise FormatError(f"{folder}: has other components than {planned.base.arch.title}", "export the model again")
    plan = plan_weights(planned, folder, dtypes)
    reached = {row.component for row in plan.coverage}
    return replace(plan, files=tuple(file for file in plan.files if source_of(file.path.parent.name) in reached))


def _hashed(manifest: ExportManifest, plan: Plan, folder: Path) -> ExportManifest:
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
    with open_regular(path) as file:
        length = file.read(8)
        return length + file.read(int.from_bytes(length, "little"))


def _changed(manifest: ExportManifest, strengths: Mapping[str, float]) -> ExportManifest:
    """What was measured was of other weights."""
    terms: list[dict[str, Any]] = [
        {**term, "lambda": strengths.get(term["term"], term["lambda"])} for term in manifest.recipe["terms"]
    ]
    return replace(manifest, recipe={**manifest.recipe, "terms": terms}, parity={}, image_parity={}, unfinished=False)


def _describe(
    manifest: ExportManifest, folder: Path, written: Mapping[str, Mapping[str, Any]]
) -> tuple[ExportManifest, tuple[str, ...]]:
    """The new manifest, after the target's files, some of which are named for the weights."""
    files = {**manifest.files, **written}
    removed = named(manifest.target).write(folder, replace(manifest, files=files))
    weights = {name: said for name, said in files.items() if name.endswith(".safetensors")}
    return replace(manifest, files=manifests.described(folder, manifests.contents(folder), weights)), removed


def _replace(manifest: ExportManifest, staging: Path, folder: Path) -> None:
    manifest.write(staging)
    (staging / manifests.NAME).replace(folder / manifests.NAME)

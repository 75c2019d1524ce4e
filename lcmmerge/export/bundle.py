"""A whole export: stage, write the weights, link the graphs onto them, describe, commit."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lcmmerge.accelerators import SCHEDULERS, Sampling, Span
from lcmmerge.bake.execute import execute
from lcmmerge.bake.fuse import check_output
from lcmmerge.bake.report import ReportRow, rows
from lcmmerge.export import manifest as manifests
from lcmmerge.export.manifest import ExportManifest
from lcmmerge.export.names import write_renamed
from lcmmerge.export.request import PreparedExport
from lcmmerge.export.tokenizers import write_tokenizer
from lcmmerge.export.weights import VAE_PARTS, described, header
from lcmmerge.graphs.cache import cached
from lcmmerge.graphs.components import PipelinePart
from lcmmerge.graphs.graph import opset_of
from lcmmerge.graphs.link import check_link, link
from lcmmerge.graphs.profiles import as_dict, whole_shapes
from lcmmerge.history import RECIPE
from lcmmerge.merge.configs import OPTIONAL, scheduler_config, set_scheduler
from lcmmerge.merge.plan import Plan
from lcmmerge.merge.provenance import metadata
from lcmmerge.output import Output
from lcmmerge.refs import name_of
from lcmmerge.refs.files import inside, parse_object
from lcmmerge.refs.reference import hub_reference
from lcmmerge.refs.weights import MODEL_INDEX, SCHEDULER, Tree, local_tree, read_json
from lcmmerge.tensors import TensorSource
from lcmmerge.tensors.digest import hashing
from lcmmerge.tensors.dtypes import OUTPUT_DTYPES
from lcmmerge.tensors.staging import Staging

GRAPHS = {"plain": "model.onnx", "fused": "model.fused.onnx"}
DTYPE_KEYS = ("dtype", "torch_dtype")


@dataclass(frozen=True, slots=True)
class Exported:
    """An export that was written. ``rows``: what the terms of a merge on the way did, as ``fuse`` reports it."""

    folder: Path
    manifest: ExportManifest
    rows: tuple[ReportRow, ...]


def export(prepared: PreparedExport, output: Output) -> Exported:
    """Nothing is at the target until everything is.

    Raises OutputError, NumericError, NoEffectError, AlreadyFusedError, NotFoundError, IncompatibleError (a graph that
    no runtime would take).
    """
    plan, request = prepared.plan, prepared.request
    check_output(plan, force=request.force)
    plan.fetch()
    with Staging(plan.target, force=request.force) as staging, hashing(plan.sources) as hashes:
        folder = staging.folder / plan.target.name
        _write_small_files(prepared, folder)
        with output.progress("weights", plan.nbytes) as progress:
            outcome = execute(plan, folder, header, request.settings, progress, whole_files=True)
        merged = rows(plan, {layer.name: layer for layer in outcome.layers}.values())
        _write_graphs(prepared, folder, output)
        weights = described(plan, outcome, folder)
        manifest = replace(_manifest(prepared, hashes()), files=weights, whole=_write_whole(prepared, folder))
        if request.nvidia:
            plain = {component.name: f"{component.name}/{GRAPHS['plain']}" for component in prepared.components}
            manifest = replace(manifest, named=write_renamed(folder, prepared.components, plain))
        if request.parity:
            manifest = _compared(manifest, folder, output)
        prepared.target.write(folder, manifest)
        if request.engines:
            from lcmmerge.export.engines import build_engines

            build_engines(folder, manifest, request.engines, output)
        manifest = replace(manifest, files=manifests.described(folder, manifests.contents(folder), weights))
        manifest.write(folder)
        staging.commit_folder()
    return Exported(plan.target, manifest, merged)


def _compared(manifest: ExportManifest, folder: Path, output: Output) -> ExportManifest:
    from lcmmerge.export.parity import image_parity, parity  # and with them the runtimes

    manifest = replace(manifest, parity=parity(folder, manifest, output))
    manifest.write(folder)
    return replace(manifest, image_parity=image_parity(folder, manifest))


def _write_small_files(prepared: PreparedExport, folder: Path) -> None:
    """Configs, scheduler and tokenizers; nothing else of what may lie beside them."""
    tree, arch = local_tree(prepared.configs), prepared.plan.base.arch
    folder.mkdir()
    _write_json(folder / MODEL_INDEX, _index(_read_own(tree, prepared.configs, MODEL_INDEX)))
    sources = {name: name for name in arch.components} | dict.fromkeys(VAE_PARTS, "vae")
    for name, source in sources.items():
        (folder / name).mkdir()
        dtype = OUTPUT_DTYPES[prepared.dtypes.get(name, prepared.dtypes["vae_decoder"])].torch_name
        config = _read_own(tree, prepared.configs, f"{source}/config.json")
        said = {key: dtype for key in DTYPE_KEYS if key in config}
        _write_json(folder / name / "config.json", _without_places(config) | said)
    (folder / "scheduler").mkdir()
    inside(prepared.configs, SCHEDULER, cached=True)
    _write_json(folder / SCHEDULER, scheduler_config(prepared.configs, prepared.plan.base))
    preset = prepared.preset
    if preset.name != "own" and preset.scheduler in SCHEDULERS:
        steps, guidance = Span.only(preset.steps), Span.only(preset.guidance)
        set_scheduler(folder, Sampling(preset.scheduler, steps, guidance, preset.settings, preset.arguments))
    for encoder in arch.text_encoders:
        name = encoder.name.replace("text_encoder", "tokenizer")
        write_tokenizer(prepared.configs / name, folder / name, prepared.request.cache)


def _read_own(tree: Tree, folder: Path, name: str) -> dict[str, Any]:
    """A JSON object of the folder, through no link out of it: what it holds is published. Raises FormatError."""
    inside(folder, name, cached=True)
    return read_json(tree, name)


def _index(index: Mapping[str, Any]) -> dict[str, Any]:
    """A pipeline's, without the parts that are not exported, as diffusers strikes them."""
    absent: dict[str, Any] = {name: [None, None] for name in OPTIONAL if name in index}
    if "requires_safety_checker" in index:
        absent["requires_safety_checker"] = False
    return _without_places(index) | absent


def _without_places(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key not in ("_name_or_path", "name_or_path")}


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", "utf-8")


def _write_graphs(prepared: PreparedExport, folder: Path, output: Output) -> None:
    todo = [(component, variant) for component in prepared.components for variant in prepared.variants(component)]
    with output.progress("graphs", len(todo), "graphs") as progress:
        for component, variant in todo:
            dtype = OUTPUT_DTYPES[prepared.dtypes[component.name]].torch
            form = "grouped" if variant == "fused" and prepared.target.grouped else variant
            graph = cached(component, dtype, form, prepared.request.cache)
            path = folder / component.name / GRAPHS[variant]
            path.write_bytes(link(graph, path.parent / component.weights))
            check_link(path)
            progress(1)


def _write_whole(prepared: PreparedExport, folder: Path) -> dict[str, Any]:
    """What the manifest says of it: nothing where none is asked for."""
    if prepared.loop is None:
        return {}
    from lcmmerge.export.whole import write_whole

    graphs = {
        component.name: {variant: f"{component.name}/{GRAPHS[variant]}" for variant in prepared.variants(component)}
        for component in prepared.components
        if component.name != "vae_encoder"
    }
    said = write_whole(folder, graphs, prepared.loop)
    shapes = {profile.name: whole_shapes(profile, said["inputs"], prepared.facts) for profile in prepared.profiles}
    return {**said, "shapes": shapes}


def _manifest(prepared: PreparedExport, hashes: Mapping[str, str]) -> ExportManifest:
    request, plan, base = prepared.request, prepared.plan, prepared.plan.base.source
    recipe = _recorded(base) if not plan.terms else None  # a model that was merged says of what
    if recipe is None:
        recipe = json.loads(metadata(plan, hashes, "")[RECIPE])
    return ExportManifest(
        model={"name": name_of(base.path), "sha256": hashes["base"]},
        architecture=plan.base.arch.name,
        target=request.to,
        dtype=request.dtype,
        components={component.name: _component(component, prepared) for component in prepared.components},
        sampling=prepared.preset.as_dict(),
        recipe=recipe,
        references=_references(plan),
        profiles={
            profile.name: as_dict(profile, prepared.components, prepared.facts) for profile in prepared.profiles
        },
        versions=manifests.versions(),
    )


def _recorded(base: TensorSource) -> dict[str, Any] | None:
    try:
        return parse_object(base.metadata.get(RECIPE, "").encode())
    except ValueError:
        return None


def _component(component: PipelinePart, prepared: PreparedExport) -> dict[str, Any]:
    name = prepared.dtypes[component.name]
    dtype = OUTPUT_DTYPES[name].torch
    return {
        "weights": f"{component.name}/{component.weights}",
        "dtype": name,
        "graphs": {
            variant: {"path": f"{component.name}/{GRAPHS[variant]}", "opset": opset_of(variant, dtype)}
            for variant in prepared.variants(component)
        },
        "inputs": {port.name: list(port.dims) for port in component.inputs},
        "outputs": {port.name: list(port.dims) for port in component.outputs},
    }


def _references(plan: Plan) -> dict[str, str]:
    """``base``, ``terms.0``, … → ``hf://owner/repo@commit/path``, of the sources in the Hub's cache."""
    found = {name: hub_reference(source.path) for name, source in plan.sources.items()}
    return {name: reference for name, reference in found.items() if reference}

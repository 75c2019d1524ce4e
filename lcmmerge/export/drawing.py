"""An export as ``sample`` meets it: a model with its record, a pipeline, and what an image is said to come from."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from lcmmerge.archs import Model
from lcmmerge.draw.load import open_model
from lcmmerge.draw.png import Origin
from lcmmerge.export.manifest import read_manifest
from lcmmerge.export.pipeline import OnnxPipeline
from lcmmerge.export.runtime import TORCH, Runtime, open_export
from lcmmerge.history import RECIPE


def model_of(folder: Path) -> Model:
    """The weights by their headers, with the record that the manifest keeps. Raises NotFoundError, FormatError."""
    model, manifest = open_model(str(folder)), read_manifest(folder)
    recipe = json.dumps({**manifest.recipe, "sampling": dict(manifest.sampling)})
    return replace(model, source=replace(model.source, metadata={RECIPE: recipe}))


def open_pipeline(
    folder: Path, provider: str | None = None, say: Callable[[str], None] = lambda text: None
) -> OnnxPipeline:
    """Raises as ``open_export`` does."""
    return OnnxPipeline(open_export(folder, provider, say=say))


def origin_of(model: Model, runtime: Runtime) -> Origin:
    """With the runtime, the U-Net's variant, and the weights' sha256 as the manifest has it."""
    origin = Origin.of(model, None, runtime.dtypes["unet"], runtime.device)
    weights = runtime.manifest.files[runtime.manifest.components["unet"]["weights"]]["sha256"]
    facts = {"provider": runtime.provider, "graph": runtime.variants["unet"], "unet_sha256": weights}
    if runtime.provider != TORCH:
        from onnxruntime import __version__

        facts["onnxruntime"] = __version__
    return replace(origin, model={**origin.model, **facts})

"""How close an export's graphs come to the modules that they were made of, with the weights that they point at.

The reference is torch in float32 over the same, rounded weights: what is measured is the graph's own error, with its
dtype's in it. For the VAE it is in float64: there torch's own error in float32 is the larger one, and above the bounds
that graphs are held to. Graphs are run by ONNX Runtime on the CPU, and those in bfloat16, which it does not take there,
by the interpreter.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lcmmerge.export.manifest import ExportManifest
from lcmmerge.export.request import tokens_of
from lcmmerge.export.runtime import open_session
from lcmmerge.export.weights import VAE_PARTS
from lcmmerge.graphs.components import PipelinePart, Port, components_of
from lcmmerge.output import Output
from lcmmerge.tensors.dtypes import OUTPUT_DTYPES

# Latents, height × width: none is what a graph was traced at, and one is odd.
SIZES = ((8, 8), (8, 16), (16, 8), (11, 13), (16, 24), (32, 32))
TIMESTEP = 499
PROMPT, SEED, MOST_PIXELS = "a photograph of a fox", 0, 256
IDS = 1000  # as large as a time id, a size in pixels, may well be


def parity(folder: Path, manifest: ExportManifest, output: Output) -> dict[str, Any]:
    """Component → variant → ``max_abs``, and ``relative`` to the largest output, over all ``sizes`` and outputs."""
    found: dict[str, Any] = {}
    todo = [component for component in components_of(folder) if component.name in manifest.components]
    runs = sum(len(manifest.components[component.name]["graphs"]) for component in todo)
    with output.progress("parity", runs, "graphs") as progress:
        for component in todo:
            said = manifest.components[component.name]
            inputs = list(_inputs(component, OUTPUT_DTYPES[said["dtype"]].torch, folder))
            expected = _reference(component, folder / said["weights"], inputs)
            names = [port.name for port in component.inputs]
            found[component.name] = {}
            for variant, graph in said["graphs"].items():
                session = open_session(folder / graph["path"], "torch" if said["dtype"] == "bf16" else "cpu")
                outputs = [session(dict(zip(names, given, strict=True))) for given in inputs]
                found[component.name][variant] = _compared(expected, [list(by_name.values()) for by_name in outputs])
                progress(1)
    return found


def image_parity(folder: Path, manifest: ExportManifest) -> dict[str, Any]:
    """One image by the graphs, and by torch in float32 with the same weights: their difference, of 255 levels.

    The folder is a whole export, its manifest in it. Drawn as it is to be drawn, of a fixed prompt and seed, and at
    256 × 256 at most: a larger one would say no more, and take minutes on a CPU.
    """
    from lcmmerge.draw import drawable, load, presets
    from lcmmerge.draw.draw import draw
    from lcmmerge.draw.jobs import jobs_of
    from lcmmerge.export.pipeline import model_of, open_pipeline

    model, preset = model_of(folder), presets.choose(model_of(folder), folder)
    width, height = (min(side, MOST_PIXELS) for side in drawable.native_size(folder))
    jobs = jobs_of([PROMPT], (width, height), seed=SEED)
    halves = any(item["dtype"] == "bf16" for item in manifest.components.values())
    pipelines = (
        open_pipeline(folder, "torch" if halves else "cpu"),
        load.load_pipeline(model, folder, torch.float32, torch.device("cpu")),
    )
    ours, torchs = (
        torch.tensor(np.asarray(drawn.image), dtype=torch.float32)
        for pipeline in pipelines
        for drawn in draw(pipeline, jobs, preset)
    )
    difference = (ours - torchs).abs()
    return {
        "prompt": PROMPT, "seed": SEED, "size": [width, height], "steps": preset.steps,
        "max_levels": int(difference.max()), "mean_levels": difference.mean().item(),
    }  # fmt: skip


def figures(parity: Mapping[str, Any]) -> dict[str, float]:
    """``unet plain`` → relative error."""
    return {
        f"{component} {variant}": said["relative"] for component, by in parity.items() for variant, said in by.items()
    }


def _inputs(component: PipelinePart, dtype: torch.dtype, folder: Path) -> Iterator[tuple[Tensor, ...]]:
    generator = torch.Generator().manual_seed(0)
    length = tokens_of(components_of(folder))
    for number, (height, width) in enumerate(SIZES):
        dims = {"batch": 1 + number % 2, "sequence": length, "latent_height": height, "latent_width": width}
        dims |= {"height": 8 * height, "width": 8 * width}
        yield tuple(_given(port, dims, dtype, component, generator) for port in component.inputs)


def _given(
    port: Port, dims: Mapping[str, Any], dtype: torch.dtype, component: PipelinePart, generator: torch.Generator
) -> Tensor:
    shape = [dims[dim] if isinstance(dim, str) else dim for dim in port.dims]
    match port.name:
        case "timestep":
            return torch.tensor(TIMESTEP)
        case "input_ids":
            return torch.randint(component.config["vocab_size"], shape, generator=generator)
        case "time_ids":
            return torch.randint(IDS, shape, generator=generator).to(dtype)
        case _:
            return torch.randn(shape, generator=generator).to(dtype)


def _reference(component: PipelinePart, weights: Path, inputs: Sequence[Sequence[Tensor]]) -> list[list[Tensor]]:
    dtype = torch.float64 if component.name in VAE_PARTS else torch.float32
    module = component.filled(weights, dtype)
    with torch.inference_mode():
        widened = [[item.to(dtype) if item.is_floating_point() else item for item in given] for given in inputs]
        return [_listed(module(*given)) for given in widened]


def _listed(outputs: Any) -> list[Tensor]:
    return list(outputs) if isinstance(outputs, tuple) else [outputs]


def _compared(expected: Sequence[Sequence[Tensor]], found: Sequence[Sequence[Tensor]]) -> dict[str, Any]:
    pairs = [pair for at in zip(expected, found, strict=True) for pair in zip(*at, strict=True)]
    errors = [(one - other).abs().max().item() for one, other in pairs]
    relative = [error / one.abs().max().item() for error, (one, _) in zip(errors, pairs, strict=True)]
    return {"sizes": [list(size) for size in SIZES], "max_abs": max(errors), "relative": max(relative)}

"""Graphs to be run: a pico's export in float32, those of short pipelines, and modules in the place of graphs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline, LCMScheduler
from exporting import graphs, shared, write
from filelock import FileLock
from fusing import Files
from merging import merge_of
from onnxfile import make
from pico import pico
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig

from lcmmerge.draw.load import canonical
from lcmmerge.export.manifest import read_manifest
from lcmmerge.export.runtime import Runtime, Session, open_session
from lcmmerge.export.weights import source_of
from lcmmerge.graphs.cache import cached
from lcmmerge.graphs.components import PipelinePart, components_of
from lcmmerge.graphs.link import link

CPU = torch.device("cpu")


def exact(factory: pytest.TempPathFactory, files: Files) -> Path:
    """The pico as it is, in float32, plain and fused; made once for all workers, and to be left as it is."""
    folder = shared(factory) / f"exact-{files.name}"
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            request = merge_of(str(files.folder("fp32")), folder, None, (1.0, 0.0))
            write(request, graphs(factory), dtype="fp32", fused=True)
    return folder


def linked(part: str, folder: Path, cache: Path) -> DiffusionPipeline:
    """The pipeline of a part of ``onnxfile``, of few layers; with its configs and float32 graphs in ``folder``."""
    name = part.partition("-")[0]
    kind, arch = type(pico(name).pipeline), pico(name).arch
    parts = dict(pico(name).pipeline.components) | {"unet": make(part), "vae": make("vae")}
    parts["scheduler"] = LCMScheduler.from_config(parts["scheduler"].config)
    for encoder in arch.text_encoders:
        config = dict(parts[encoder.name].config.to_dict()) | {"num_hidden_layers": 2}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            parts[encoder.name] = type(parts[encoder.name])(CLIPTextConfig(**config)).eval()
    pipeline = kind(**parts, **({} if arch.family.micro_conditioning else {"requires_safety_checker": False}))
    pipeline.set_progress_bar_config(disable=True)
    pipeline.save_pretrained(folder)
    for weights in folder.rglob("*.safetensors"):
        weights.unlink()
    for component in components_of(folder):
        (folder / component.name).mkdir(exist_ok=True)
        module = getattr(pipeline, source_of(component.name))
        state = {canonical("", key)[1:]: value for key, value in module.state_dict().items()}
        place = folder / component.name
        save_file({key: state[key].contiguous() for key in component.parameters()}, place / component.weights)
        graph = cached(component, torch.float32, "plain", cache)
        (place / "model.onnx").write_bytes(link(graph, place / component.weights))
    return pipeline


def of_graphs(folder: Path, like: Path) -> Runtime:
    """ONNX Runtime over the graphs of ``linked``; ``like`` is any export."""
    sessions = {item.name: open_session(folder / item.name / "model.onnx", "cpu") for item in components_of(folder)}
    return Runtime(folder, read_manifest(like), "cpu", CPU, sessions, dict.fromkeys(sessions, torch.float32))


def of_modules(folder: Path, like: Path) -> Runtime:
    """A runtime over torch's modules in place of graphs: ``folder`` is diffusers', ``like`` any export."""
    components = {item.name: item for item in components_of(folder)}
    sessions = {name: _session(item) for name, item in components.items()}
    dtypes = dict.fromkeys(sessions, torch.float32)
    return Runtime(folder, read_manifest(like), "torch", CPU, sessions, dtypes)


def _session(component: PipelinePart) -> Session:
    stored = load_file(component.folder / component.weights)
    module = component.module(torch.float32)
    names = {name: name.removeprefix("model.") for name, _ in module.named_parameters()}
    # transformers 5 writes text encoders without their prefix.
    found = {name: stored.get(ours, stored.get(ours.removeprefix("text_model."))) for name, ours in names.items()}
    module.load_state_dict(found, assign=True)

    @torch.no_grad()
    def call(inputs):
        outputs = module(*(inputs[port.name] for port in component.inputs))
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        return dict(zip((port.name for port in component.outputs), outputs, strict=True))

    return call

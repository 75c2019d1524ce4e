"""Exports to be run: a pico's in float32, with all graphs, and runtimes over bare modules."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from exporting import graphs, shared, write
from filelock import FileLock
from fusing import Files
from safetensors.torch import load_file

from lcmmerge.graphs.components import Component, components_of
from lcmmerge.graphs.manifest import read_manifest
from lcmmerge.graphs.runtime import Runtime, Session
from lcmmerge.merge.request import Request

CPU = torch.device("cpu")


def exact(factory: pytest.TempPathFactory, files: Files) -> Path:
    """The pico as it is, in float32, plain and fused; made once for all workers, and to be left as it is."""
    folder = shared(factory) / f"exact-{files.name}"
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            request = Request(str(files.folder("fp32")), folder, None, (1.0, 0.0))
            write(request, graphs(factory), dtype="fp32", fused=True)
    return folder


def plain(factory: pytest.TempPathFactory, model: Path) -> Path:
    """A diffusers folder as it is, in float32, of plain graphs alone; to be left as it is."""
    folder = shared(factory) / f"plain-{model.name}"
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            write(Request(str(model), folder, None, (1.0, 0.0)), graphs(factory), dtype="fp32")
    return folder


def of_modules(folder: Path, like: Path) -> Runtime:
    """A runtime over torch's modules in place of graphs: ``folder`` is diffusers', ``like`` any export."""
    components = {item.name: item for item in components_of(folder)}
    sessions = {name: _session(item) for name, item in components.items()}
    dtypes = dict.fromkeys(sessions, torch.float32)
    return Runtime(folder, read_manifest(like), "torch", CPU, sessions, dtypes)


def _session(component: Component) -> Session:
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

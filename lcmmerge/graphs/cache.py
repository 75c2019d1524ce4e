"""Graphs once made, and their parameters' shapes, kept by what they depend on: the config, the dtype, the libraries
and this package's sources.

In ``$XDG_CACHE_HOME/lcmmerge/graphs``, else ``~/.cache/lcmmerge/graphs``; a graph is about a megabyte, and each may be
deleted at any time.
"""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from lcmmerge.graphs.components import Component
from lcmmerge.graphs.graph import graphs_of, opset_of
from lcmmerge.tensors.kept import keep, user_cache

if TYPE_CHECKING:
    import onnx_ir as ir
    import torch

LIBRARIES = ("diffusers", "onnx", "onnx-ir", "torch", "transformers")


def default_folder() -> Path:
    return user_cache("graphs")


def cached(component: Component, dtype: torch.dtype, variant: str, folder: Path | None = None) -> bytes:
    """A graph of ``graphs_of`` as bytes, to be linked; from ``folder`` (the user's cache) where it was made before.

    A component's variants are made together. Raises what ``graphs_of`` raises.
    """
    folder = default_folder() if folder is None else folder
    with suppress(OSError):
        return _path(folder, component, dtype, variant).read_bytes()
    variants = {variant, "plain", "fused"} if component.fused else {variant, "plain"}
    graphs = {name: serialise(graph) for name, graph in graphs_of(component, dtype, sorted(variants)).items()}
    for name, graph in graphs.items():
        keep(_path(folder, component, dtype, name), graph)
    return graphs[variant]


def parameters(component: Component, folder: Path | None = None) -> dict[str, tuple[int, ...]]:
    """``component.parameters()``, kept likewise: to make the module loads diffusers, which takes seconds."""
    path = (default_folder() if folder is None else folder) / f"{component.name}-{_key(component)}.json"
    with suppress(OSError):
        return {name: tuple(shape) for name, shape in json.loads(path.read_bytes()).items()}
    found = component.parameters()
    keep(path, json.dumps(found).encode())
    return found


def serialise(graph: ir.Model) -> bytes:
    import onnx_ir as ir

    data: bytes = ir.to_proto(graph).SerializeToString(deterministic=True)
    return data


def _path(folder: Path, component: Component, dtype: torch.dtype, variant: str) -> Path:
    key = _key(component, dtype=str(dtype), opset=opset_of(variant, dtype))
    return folder / f"{component.name}-{variant}-{key}.onnx"


def _key(component: Component, **more: object) -> str:
    """A hash of all that a module, and with ``more`` its graph, depend on."""
    facts = {
        "component": component.name,
        "config": dict(component.config),
        "libraries": {name: version(name) for name in LIBRARIES},
        "sources": _sources(),
        **more,
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


@cache
def _sources() -> str:
    """A hash of the code that makes graphs."""
    digest = hashlib.sha256()
    here = Path(__file__).parent
    made = [here / f"{name}.py" for name in ("building", "graph", "lowering", "operators", "passes")]
    for path in (*made, *sorted((here / "components").glob("*.py"))):
        digest.update(path.read_bytes())
    return digest.hexdigest()

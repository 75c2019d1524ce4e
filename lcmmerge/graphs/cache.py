"""Graphs once made, kept by what they depend on: the config, the dtype, the libraries and this package's sources.

In ``$XDG_CACHE_HOME/lcmmerge/graphs``, else ``~/.cache/lcmmerge/graphs``; each is about a megabyte and may be
deleted at any time.
"""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import suppress
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from lcmmerge.errors import OutputError
from lcmmerge.graphs.components import Component
from lcmmerge.graphs.graph import graphs_of, opset_of
from lcmmerge.tensors.staging import replace_with

if TYPE_CHECKING:
    import onnx_ir as ir
    import torch

LIBRARIES = ("diffusers", "onnx", "onnx-ir", "torch", "transformers")


def default_folder() -> Path:
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "lcmmerge" / "graphs"


def cached(component: Component, dtype: torch.dtype, variant: str, folder: Path | None = None) -> bytes:
    """``graph_of`` as bytes, to be linked; from ``folder`` (the user's cache) where it was made before.

    A component's variants are made together. Raises what ``graph_of`` raises.
    """
    folder = default_folder() if folder is None else folder
    with suppress(OSError):
        return _path(folder, component, dtype, variant).read_bytes()
    variants = {variant, "plain", "fused"} if component.fused else {variant, "plain"}
    graphs = {name: serialise(graph) for name, graph in graphs_of(component, dtype, sorted(variants)).items()}
    with suppress(OSError, OutputError):  # a cache that cannot be written costs time, and is no error
        folder.mkdir(parents=True, exist_ok=True)
        for name, graph in graphs.items():
            replace_with(_path(folder, component, dtype, name), graph)
    return graphs[variant]


def serialise(graph: ir.Model) -> bytes:
    import onnx_ir as ir

    data: bytes = ir.to_proto(graph).SerializeToString(deterministic=True)
    return data


def _path(folder: Path, component: Component, dtype: torch.dtype, variant: str) -> Path:
    """Named by a hash of all that a graph depends on."""
    facts = {
        "component": component.name,
        "config": dict(component.config),
        "dtype": str(dtype),
        "libraries": {name: version(name) for name in LIBRARIES},
        "opset": opset_of(variant, dtype),
        "sources": _sources(),
    }
    key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
    return folder / f"{component.name}-{variant}-{key}.onnx"


@cache
def _sources() -> str:
    """A hash of the code that makes graphs."""
    digest = hashlib.sha256()
    here = Path(__file__).parent
    made = [here / f"{name}.py" for name in ("building", "graph", "lowering", "operators", "passes")]
    for path in (*made, *sorted((here / "components").glob("*.py"))):
        digest.update(path.read_bytes())
    return digest.hexdigest()

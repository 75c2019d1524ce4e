"""Graphs once made, kept by what they depend on: the config, the dtype, the libraries and this package's sources.

With them is kept what else depends on small files alone, and on libraries that take seconds to load: parameters'
shapes, tokenizers, how a model is drawn. In ``$XDG_CACHE_HOME/lcmmerge/graphs``, else ``~/.cache/lcmmerge/graphs``; a
graph is about a megabyte, and each may be deleted at any time. One that is damaged is made anew.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lcmmerge.graphs.components import PipelinePart
from lcmmerge.graphs.graph import OPSETS, graphs_of, opset_of
from lcmmerge.graphs.proof import provable, prove
from lcmmerge.graphs.serial import serialise
from lcmmerge.tensors.kept import keep, recall, user_cache

if TYPE_CHECKING:
    import torch

LIBRARIES = ("diffusers", "onnx", "onnx-ir", "tokenizers", "torch", "transformers")
SOURCES = ("graphs/**/*.py", "export/**/*.py", "draw/presets.py", "archs/*.py", "accelerators/*.py")


def default_folder() -> Path:
    return user_cache("graphs")


def cached(component: PipelinePart, dtype: torch.dtype, variant: str, folder: Path | None = None) -> bytes:
    """A graph of ``graphs_of`` as bytes, to be linked; from ``folder`` (the user's cache) where it was made before.

    A component's variants are made together, after those of the same configuration built tiny are proved; models that
    differ in widths and depths alone have that in common. Raises what ``graphs_of`` and ``prove`` raise.
    """
    folder = default_folder() if folder is None else folder
    if (kept := recall(_path(folder, component, dtype, variant))) is not None:
        return kept
    variants = {variant, *OPSETS} if component.fused else {variant, "plain"}
    _prove_once(component, dtype, variants, folder)
    graphs = {name: serialise(graph) for name, graph in graphs_of(component, dtype, sorted(variants)).items()}
    for name, graph in graphs.items():
        keep(_path(folder, component, dtype, name), graph)
    return graphs[variant]


def _prove_once(component: PipelinePart, dtype: torch.dtype, variants: Iterable[str], folder: Path) -> None:
    if component.shrink is None:
        return
    small, opsets = component.shrink(component.config), provable(dtype, sorted(variants))
    facts = {**_facts(small), "dtype": str(dtype), "opsets": opsets}
    once(f"{component.name}-proof", facts, lambda: prove(small, dtype, opsets), folder)


def parameters(component: PipelinePart, folder: Path | None = None) -> dict[str, tuple[int, ...]]:
    """``component.parameters()``, kept likewise: to make the module loads diffusers, which takes seconds."""
    found = once(component.name, _facts(component), component.parameters, folder)
    return {name: tuple(shape) for name, shape in found.items()}


def once(name: str, facts: Mapping[str, Any], make: Callable[[], Any], folder: Path | None = None) -> Any:
    """What ``make`` gives, as JSON has it; made once for the ``facts`` that it depends on, and kept likewise."""
    path = (default_folder() if folder is None else folder) / f"{name}-{_key(facts)}"
    content = recall(path)
    if content is None:
        content = json.dumps(make()).encode()
        keep(path, content)
    return json.loads(content)


def _path(folder: Path, component: PipelinePart, dtype: torch.dtype, variant: str) -> Path:
    facts = {**_facts(component), "dtype": str(dtype), "opset": opset_of(variant, dtype)}
    return folder / f"{component.name}-{variant}-{_key(facts)}"


def _facts(component: PipelinePart) -> dict[str, Any]:
    """Torch's exporter makes a graph by another library, which nobody needs whose parts are all ``lowered``."""
    exporter = None if component.lowered else version("onnxscript")
    return {"component": component.name, "config": dict(component.config), "exporter": exporter}


def _key(facts: Mapping[str, Any]) -> str:
    """A hash of the facts, of the libraries' versions and of our own code, SOURCES."""
    return hashlib.sha256(json.dumps([facts, _makers()], sort_keys=True).encode()).hexdigest()[:16]


@cache
def _makers() -> dict[str, str]:
    digest = hashlib.sha256()
    for path in sources():
        digest.update(path.read_bytes())
    return {name: version(name) for name in LIBRARIES} | {"lcmmerge": digest.hexdigest()}


def sources() -> list[Path]:
    """The files that SOURCES are."""
    package = Path(__file__).parents[1]
    return [path for pattern in SOURCES for path in sorted(package.glob(pattern))]

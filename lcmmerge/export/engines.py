"""Engines from an export's graphs: by TensorRT where it is installed, else by TensorRT-RTX.

An engine holds the weights, and runs where it was built: on the same GPU and library. TensorRT-RTX builds without a GPU
too, for the compute capability that is named. https://docs.nvidia.com/deeplearning/tensorrt/latest/
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lcmmerge.errors import CrashError, LcmMergeError, NotFoundError, OptionError
from lcmmerge.export import rtx
from lcmmerge.export.manifest import ExportManifest
from lcmmerge.export.targets.tensorrt import ENGINES, FOLDER, engine, graph
from lcmmerge.graphs.apart import apart
from lcmmerge.output import Output

Shapes = Mapping[str, Sequence[Sequence[int]]]  # input → least, usual, most


def library() -> Any:
    """Raises LcmMergeError where neither is installed."""
    try:
        return importlib.import_module("tensorrt")
    except (ImportError, OSError):
        return rtx.bindings()


def check_engines(names: Sequence[str], profiles: Sequence[str], target: str) -> None:
    """Refuse before an export what could not be built after it. Raises NotFoundError, OptionError."""
    for name in names:
        if target != FOLDER:
            raise OptionError(f"an export to {target} has no engines", f"export --to {FOLDER}, or omit --build")
        if name not in profiles:
            raise NotFoundError(f"{name!r}: no such profile", f"the profiles are {', '.join(profiles)}")
        library()


def build_engines(folder: Path, manifest: ExportManifest, names: Sequence[str], output: Output) -> None:
    """One for each component and each of the profiles that ``names`` says. Raises LcmMergeError."""
    todo = [(name, *item) for name in names for item in manifest.profiles[name]["shapes"].items()]
    (folder / FOLDER / ENGINES).mkdir()
    with output.progress("engines", len(todo), "engines") as progress:
        for name, component, shapes in todo:
            plain = manifest.components[component]["graphs"]["plain"]["path"]
            graphs = dict.fromkeys((graph(manifest, component), plain))
            # Fused attention has kernels for the usual widths of a head alone.
            if not any(_built(folder / path, shapes, folder / engine(component, name)) for path in graphs):
                cure = "`lcmmerge check --tensorrt` says why"
                raise LcmMergeError(f"{component}: TensorRT builds no engine of it", cure)
            progress(1)


def _built(path: Path, shapes: Shapes, target: Path) -> bool:
    """Whether there is an engine now."""
    try:
        return apart(_build, path, shapes, target)
    except CrashError:
        return False


def _build(path: Path, shapes: Shapes, target: Path) -> bool:
    trt = library()
    log = trt.Logger(trt.Logger.INTERNAL_ERROR)
    builder = trt.Builder(log)
    network = builder.create_network(_typed(trt))
    parser = trt.OnnxParser(network, log)
    if not parser.parse_from_file(str(path)):
        return False
    config, profile = builder.create_builder_config(), builder.create_optimization_profile()
    for name, ends in shapes.items():
        profile.set_shape(name, *map(tuple, ends))
    config.add_optimization_profile(profile)
    _for_capability(trt, config)
    built = builder.build_serialized_network(network, config)
    if built is not None:
        target.write_bytes(built)
    return built is not None


def _typed(trt: Any) -> int:
    """TensorRT 10 must be told that the graph's own types hold."""
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if flag is None else 1 << int(flag)


def _for_capability(trt: Any, config: Any) -> None:
    import torch

    if hasattr(config, "set_compute_capability") and not torch.cuda.is_available():
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(trt.ComputeCapability, rtx.CAPABILITY), 0)

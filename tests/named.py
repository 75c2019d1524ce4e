"""Sources of nothing but names and shapes: what a reader sees before the first weight is read."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from pathlib import Path

from lcmmerge.tensors import DTYPES, TensorInfo, TensorSource


def named_source(shapes: Mapping[str, tuple[int, ...]], layout: str = "single-file") -> TensorSource:
    path = Path("named.safetensors")
    half = DTYPES["F16"]
    tensors = {name: TensorInfo(name, half, tuple(shape), path, 0, 2 * prod(shape)) for name, shape in shapes.items()}
    return TensorSource(path, layout, tensors, (path,))

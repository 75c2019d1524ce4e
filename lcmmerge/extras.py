"""The extras of the installation: what each adds, and the modules by which it shows that it is installed.

pyproject.toml says which packages they are, and a test that both say the same. Reading a checkpoint, merging and
writing need none of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec

from lcmmerge.errors import LcmMergeError


@dataclass(frozen=True, slots=True)
class Extra:
    """An extra of the installation.

    ``adds``: what people gain. ``modules``: top-level ones, those of the extras that it builds on too.
    """

    adds: str
    modules: tuple[str, ...]


DRAW = ("diffusers", "transformers", "accelerate", "PIL")
EXTRAS = {
    "draw": Extra("images of a checkpoint, or of a merge that is not written", DRAW),
    "search": Extra("λ found by drawing a grid and measuring", (*DRAW, "optuna")),
    "train": Extra("LCM-LoRAs and style LoRAs of your own", (*DRAW, "peft", "datasets", "tensorboard")),
    "export": Extra("ONNX and TensorRT-ready graphs, and drawing with them", (*DRAW, "onnx", "onnx_ir", "onnxruntime")),
    "metrics": Extra("LPIPS as an objective of a search", (*DRAW, "optuna", "torchmetrics")),
    "cluster": Extra("search on many machines (Ray)", (*DRAW, "optuna", "ray")),
    "gguf": Extra("GGUF's K-quants and I-quants, read", ("gguf",)),
    "postgres": Extra("a search's study in PostgreSQL, for many workers", (*DRAW, "optuna", "psycopg")),
    "tensorrt-rtx": Extra(
        "NVIDIA's real parser and builder, also without a GPU", ("tensorrt_rtx_libs", "tensorrt_rtx_bindings")
    ),
}


def check_installed(*extras: str) -> None:
    """Raises LcmMergeError with the modules that are missing, and the command that installs the extras."""
    lacking = {extra: [name for name in EXTRAS[extra].modules if not _is_there(name)] for extra in extras}
    absent = sorted({name for names in lacking.values() for name in names})
    if absent:
        wanted = ",".join(extra for extra, names in lacking.items() if names)
        raise LcmMergeError(f"not installed here: {', '.join(absent)}", f"pip install 'lcmmerge[{wanted}]'")


def _is_there(name: str) -> bool:
    """A folder of that name, from which Python would make an empty package, does not count."""
    spec = find_spec(name)
    return spec is not None and spec.origin is not None

"""ONNX Runtime, and whatever else reads ONNX: the graphs are all that it needs."""

from __future__ import annotations

from pathlib import Path

from lcmmerge.export.manifest import ExportManifest
from lcmmerge.export.targets import Target


def _write(folder: Path, manifest: ExportManifest) -> tuple[str, ...]:
    return ()


TARGET = Target("graphs for ONNX Runtime", frozenset({"fp32", "fp16", "bf16"}), _write)

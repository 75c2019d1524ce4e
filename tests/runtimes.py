"""The oldest ONNX Runtime that pyproject.toml allows, and the newest that we know: that of this environment."""

from __future__ import annotations

import tomllib
from pathlib import Path

import onnxruntime
from cudastubs import installed
from packaging.requirements import Requirement

VERSIONS = ("oldest", "newest")
ROOT = Path(__file__).parents[1]


def floor() -> str:
    """``onnxruntime-gpu``'s."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    wanted = {found.name: found for found in map(Requirement, extras["export"])}["onnxruntime-gpu"]
    (least,) = wanted.specifier
    return least.version


def runtime(version: str, cache: Path) -> Path:
    """A folder to be first on Python's path; the oldest is installed into ``cache``, apart from all else."""
    if version == "newest":
        return Path(onnxruntime.__file__).parents[1]
    return installed(cache / f"onnxruntime-gpu-{floor()}", f"onnxruntime-gpu=={floor()}")

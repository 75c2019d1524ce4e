"""The libraries of the extra ``export``, which nothing else of lcmmerge needs."""

from __future__ import annotations

from importlib.util import find_spec

from lcmmerge.errors import LcmMergeError

GRAPHS, RUNS = ("onnx", "onnx_ir"), ("onnxruntime",)


def check_installed(*modules: str) -> None:
    """Raises LcmMergeError."""
    if absent := [module for module in modules if find_spec(module) is None]:
        raise LcmMergeError(f"{', '.join(absent)}: not installed here", "pip install 'lcmmerge[export]'")

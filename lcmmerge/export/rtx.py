"""TensorRT-RTX's own parser and builder, which need no GPU: the extra ``tensorrt-rtx``.

Graphs are typed, and so is the network. An engine is built for compute capability 8.0, the first with bfloat16, and
thrown away: one that is to run is built on its GPU. https://docs.nvidia.com/deeplearning/tensorrt-rtx/latest/
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from lcmmerge.errors import LcmMergeError
from lcmmerge.extras import check_installed

CAPABILITY = "SM80"
SAID = 300  # characters of a message that are shown
Shapes = Mapping[str, Sequence[Sequence[int]]]  # input → least, usual, most


@dataclass(frozen=True, slots=True)
class Built:
    """What came of building an engine.

    ``problems`` of the ``stage``, ``parser`` or ``builder``; where there are none, an engine's size.
    """

    stage: str
    problems: tuple[str, ...]
    seconds: float = 0.0
    nbytes: int = 0


@cache
def bindings() -> Any:
    """The library. Raises LcmMergeError with the command that installs it."""
    check_installed("tensorrt-rtx")
    try:
        importlib.import_module("tensorrt_rtx_libs")  # finds the libraries that the next one is linked with
        return importlib.import_module("tensorrt_rtx_bindings")
    except (ImportError, OSError):
        raise LcmMergeError("TensorRT-RTX is not for this platform", "omit --tensorrt") from None


def build(graph: Path, profile: Shapes | None) -> Built:
    """Parse a graph, and build an engine for ``profile`` where one is given. Raises LcmMergeError."""
    trt, log = bindings(), _log()
    builder = trt.Builder(log)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, log)
    if not parser.parse_from_file(str(graph)):
        return Built("parser", tuple(_errors(parser)) or ("it refused the graph, and gave no reason",))
    if profile is None:
        return Built("parser", ())
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(getattr(trt.ComputeCapability, CAPABILITY), 0)
    config.add_optimization_profile(_profile(builder, network, profile))
    start = time.perf_counter()
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        return Built("builder", tuple(log.errors) or ("it gave no engine, and no reason",))
    return Built("builder", (), time.perf_counter() - start, engine.nbytes)


def _profile(builder: Any, network: Any, shapes: Shapes) -> Any:
    profile = builder.create_optimization_profile()
    for number in range(network.num_inputs):
        tensor = network.get_input(number)
        if -1 in tuple(tensor.shape):
            profile.set_shape(tensor.name, *map(tuple, shapes[tensor.name]))
    return profile


def _errors(parser: Any) -> Iterator[str]:
    for number in range(parser.num_errors):
        error = parser.get_error(number)
        where = f"{error.node_operator()} {error.node_name()!r}: " if error.node_name() else ""
        yield where + " ".join(error.desc().split())[:SAID]


def _log() -> Any:
    """Errors in words, once each; the class can only be made where its base is."""
    trt = bindings()

    class Log(trt.ILogger):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            text = " ".join(message.split())[:SAID]
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR) and text not in self.errors:
                self.errors.append(text)

    return Log()

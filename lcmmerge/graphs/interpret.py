"""An ONNX graph run by torch, node by node: on any of its devices, and with arithmetic that is not ONNX Runtime's.

It is a second opinion about a graph, and runs one where there is a GPU and no runtime for it. It plans nothing and
fuses nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx
import torch
from onnx import NodeProto, TensorProto
from torch import Tensor

from lcmmerge.draw.draw import is_out_of_memory
from lcmmerge.errors import FormatError, IncompatibleError, LcmMergeError
from lcmmerge.graphs.kernels import HOST, KERNELS, WIDENED, constant, dtype_of, tensor_of
from lcmmerge.graphs.link import read_graph
from lcmmerge.graphs.rules import ONNX

CURE = "run the graph with ONNX Runtime"


@dataclass(frozen=True, slots=True)
class NodeStep:
    """A node: what it calls, with the names of what it takes and gives. ``done``: what no later node asks for."""

    title: str
    function: Callable[..., Any]
    inputs: tuple[str, ...]
    host: frozenset[int]
    attributes: Mapping[str, Any]
    outputs: tuple[str, ...]
    done: tuple[str, ...]


class Interpreter:
    """Runs an ONNX graph by torch, node by node.

    ``Interpreter(path, device)(inputs)``: name → tensor in, name → tensor out, all on ``device``.

    Weights are read once, and kept on the device in the graph's own types; whole numbers of at most one axis are shapes
    and stay on the CPU. ``widen``: products of float16 are computed in float32, and rounded to float16, one node at a
    time. Raises NotFoundError, FormatError, IncompatibleError (an operator, attribute or type
    that ``kernels`` lacks).
    """

    def __init__(self, path: Path, device: torch.device | str = "cpu", *, widen: bool = False) -> None:
        self.path, self.device = path, torch.device(device)
        model = read_graph(path)
        self.inputs = tuple(value.name for value in model.graph.input)
        self.outputs = tuple(value.name for value in model.graph.output)
        self._constants = {tensor.name: self._place(_read(tensor, path)) for tensor in model.graph.initializer}
        steps = list(_steps(model.graph, path))
        for step in steps:
            if step.function is constant:
                self._constants[step.outputs[0]] = self._place(self._run(step, {}))
        functions = WIDENED if widen else {}
        self._steps = tuple(
            replace(step, function=functions.get(step.function, step.function))
            for step in steps
            if step.function is not constant
        )

    @torch.no_grad()
    def __call__(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        values = self._constants | {name: inputs[name].to(self.device) for name in self.inputs}
        for step in self._steps:
            results = self._run(step, values)
            values.update(zip(step.outputs, results if isinstance(results, tuple) else (results,), strict=True))
            for name in step.done:
                del values[name]
        return {name: values[name].contiguous() for name in self.outputs}

    def _run(self, step: NodeStep, values: Mapping[str, Tensor]) -> Any:
        given = [values[name] if name else None for name in step.inputs]
        data = [tensor for place, tensor in enumerate(given) if tensor is not None and place not in step.host]
        device = next((tensor.device for tensor in data if tensor.device.type != "cpu"), torch.device("cpu"))
        arguments = [
            tensor if tensor is None else tensor.tolist() if place in step.host else tensor.to(device)
            for place, tensor in enumerate(given)
        ]
        try:
            return step.function(*arguments, **step.attributes)
        except NotImplementedError as error:
            raise IncompatibleError(f"{self.path}: {step.title}: {error} is not interpreted", CURE) from None
        except Exception as error:  # of whatever kind torch has for it
            if is_out_of_memory(error):
                raise
            what = f"{self.path}: {step.title}: torch cannot compute it: {' '.join(str(error).split())[:300]}"
            raise LcmMergeError(what, CURE) from None

    def _place(self, tensor: Tensor) -> Tensor:
        is_shape = not tensor.is_floating_point() and tensor.dim() <= 1
        return tensor if is_shape else tensor.to(self.device)


def _steps(graph: onnx.GraphProto, path: Path) -> Iterator[NodeStep]:
    kept = {value.name for value in graph.output} | {tensor.name for tensor in graph.initializer}
    last = {name: number for number, node in enumerate(graph.node) for name in (*node.input, *node.output) if name}
    for number, node in enumerate(graph.node):
        title = f"{node.op_type} {node.name!r}"
        function = KERNELS.get(node.op_type) if node.domain in ONNX else None
        if function is None:
            known = f"{node.domain}::{node.op_type}".removeprefix("::")
            raise IncompatibleError(f"{path}: the operator {known} of node {node.name!r} is not interpreted", CURE)
        attributes = _attributes(node)
        if unknown := attributes.keys() - (getattr(function, "__kwdefaults__", None) or {}).keys():
            raise IncompatibleError(f"{path}: {title}: the attribute {min(unknown)} is not interpreted", CURE)
        done = tuple(name for name in {*node.input, *node.output} - kept if name and last[name] == number)
        host = frozenset(HOST.get(node.op_type, ()))
        yield NodeStep(title, function, tuple(node.input), host, attributes, tuple(node.output), done)


def _attributes(node: NodeProto) -> dict[str, Any]:
    values = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
    return {name: value.decode() if isinstance(value, bytes) else value for name, value in values.items()}


def _read(proto: TensorProto, path: Path) -> Tensor:
    """An initializer from the graph, or from the file beside it that it names.

    Raises FormatError, IncompatibleError (a type that torch does not compute with).
    """
    try:
        if proto.data_location != TensorProto.EXTERNAL:
            return tensor_of(proto)
        tensor = torch.empty(tuple(proto.dims), dtype=dtype_of(proto.data_type))
    except NotImplementedError as error:
        raise IncompatibleError(f"{path}: {proto.name!r}: {error} is not interpreted", CURE) from None
    place = {entry.key: entry.value for entry in proto.external_data}
    file = path.parent / place["location"]
    with file.open("rb", buffering=0) as stream:
        stream.seek(int(place.get("offset", 0)))
        read = stream.readinto(tensor.view(-1).view(torch.uint8).numpy().data) if tensor.numel() else 0
    if read != tensor.nbytes:
        raise FormatError(f"{file}: ends before {proto.name!r} does", "export the model again")
    return tensor

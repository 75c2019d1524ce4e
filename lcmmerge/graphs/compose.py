"""Graphs put together into one: a part's nodes are copied in for each call, over the same initializers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from lcmmerge.graphs.building import Constants
from lcmmerge.graphs.operators.layers import LAYER_NORM


class LinkedGraph:
    """A linked graph in ``folder``, below the composition's; its parameters are called ``folder.name`` there."""

    def __init__(self, path: Path) -> None:
        self.model = ir.from_proto(onnx.load(path, load_external_data=False))
        initializers = self.model.graph.initializers.values()
        self.initializers = {value: _below(path.parent.name, value) for value in initializers}

    @property
    def inputs(self) -> tuple[str, ...]:
        return tuple(str(value.name) for value in self.model.graph.inputs)


class Composition:
    """A graph in the making, of the highest opset of its ``parts``.

    A dim's name is the same size in all of its parts: runtimes plan their memory by it.

    No operator that we emit means less in a later one; but rows are then normalised as in graphs of that opset.
    """

    def __init__(self, parts: Iterable[LinkedGraph]) -> None:
        models = [part.model for part in parts]
        self.nodes: list[ir.Node] = []
        self.constant = Constants()
        self.opset = max(model.graph.opset_imports[""] for model in models)
        self.ir_version = max(model.ir_version for model in models)
        self._initializers: dict[str, ir.Value] = {}

    def add(self, operator: str, *inputs: ir.Value, dtype: ir.DataType | None = None, **attributes: Any) -> ir.Value:
        """A node of one output, of its first input's type unless ``dtype`` says another."""
        name = f"{operator}_{len(self.nodes)}"
        output = ir.Value(name=name, type=ir.TensorType(dtype or _dtype(inputs[0])))
        items = ir.convenience.convert_attributes(attributes)
        self.nodes.append(ir.Node("", operator, inputs, items, outputs=[output], name=name))
        return output

    def cast(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        return value if value.dtype == dtype else self.add("Cast", value, dtype=dtype, to=dtype)

    def call(self, part: LinkedGraph, given: Mapping[str, ir.Value], scope: str) -> dict[str, ir.Value]:
        """The part's outputs by name, for its inputs by name; each is cast to the type that the part has it in."""
        graph = part.model.graph
        values: dict[ir.Value | None, ir.Value | None] = {None: None}
        for value in graph.inputs:
            values[value] = self.cast(given[str(value.name)], _dtype(value))
        for own, initializer in part.initializers.items():
            values[own] = self._initializers.setdefault(str(initializer.name), initializer)
        for node in graph:
            if node.op_type == "Constant":
                values[node.outputs[0]] = self.constant(node.attributes["value"].as_tensor().numpy())
                continue
            outputs = [
                ir.Value(name=f"{scope}/{value.name}", type=value.type, shape=value.shape) for value in node.outputs
            ]
            values.update(zip(node.outputs, outputs, strict=True))
            inputs = [values[value] for value in node.inputs]
            operator, attributes, name = node.op_type, list(node.attributes.values()), f"{scope}/{node.name}"
            if operator == "InstanceNormalization" and self.opset >= LAYER_NORM:
                rows, ones = map(_present, inputs[:2])
                operator, inputs = "LayerNormalization", [rows, self._ones(rows, _dtype(ones))]
            self.nodes.append(ir.Node(node.domain, operator, inputs, attributes, outputs=outputs, name=name))
        return {str(value.name): _present(values[value]) for value in graph.outputs}

    def _ones(self, rows: ir.Value, dtype: ir.DataType) -> ir.Value:
        """As many as a row of [b, groups, …] has values."""
        one = self.constant(np.ones(1, dtype.numpy()))
        return self.add("Expand", one, self.add("Shape", rows, dtype=ir.DataType.INT64, start=2, end=3))

    def model(self, inputs: list[ir.Value], outputs: list[ir.Value], name: str) -> ir.Model:
        nodes, initializers = [*self.constant.nodes, *self.nodes], list(self._initializers.values())
        graph = ir.Graph(
            inputs, outputs, nodes=nodes, initializers=initializers, opset_imports={"": self.opset}, name=name
        )
        return ir.Model(graph, ir_version=self.ir_version, producer_name="lcmmerge")


def _below(folder: str, value: ir.Value) -> ir.Value:
    """The same parameter for a graph in the folder above."""
    tensor, name = value.const_value, f"{folder}.{value.name}"
    assert isinstance(tensor, ir.ExternalTensor)
    location, shape = f"{folder}/{tensor.location}", ir.Shape(list(tensor.shape.numpy()))
    moved = ir.ExternalTensor(location, tensor.offset, tensor.length, tensor.dtype, shape=shape, name=name)
    return ir.Value(name=name, shape=value.shape, type=value.type, const_value=moved)


def _dtype(value: ir.Value) -> ir.DataType:
    assert value.dtype is not None
    return value.dtype


def _present(value: ir.Value | None) -> ir.Value:
    assert value is not None
    return value

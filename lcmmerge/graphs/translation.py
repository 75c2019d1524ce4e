"""From torch's exported program to ONNX by torch's own exporter: for families that are of operators beyond our table.

It takes minutes where ``lowering`` takes a second, and three times the nodes; the parameters keep their names. What it
makes sequences of, which TensorRT refuses, it is told to make otherwise.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
import torch
from onnx_ir.passes import common
from torch.export.graph_signature import InputKind

from lcmmerge.errors import IncompatibleError
from lcmmerge.graphs.building import DTYPES
from lcmmerge.graphs.components.base import parameter_name

if TYPE_CHECKING:
    from torch.export import ExportedProgram

    from lcmmerge.graphs.components import PipelinePart

CURE = "its config or a newer library brought it: try the versions of constraints.txt"


def translate(program: ExportedProgram, component: PipelinePart, opset: int) -> ir.Model:
    """The program as a graph, as ``lowering.lower`` makes it. Raises IncompatibleError."""
    try:
        made = torch.onnx.export(
            program,
            input_names=[port.name for port in component.inputs],
            output_names=[port.name for port in component.outputs],
            opset_version=opset,
            dynamo=True,
            optimize=False,
            verbose=False,
            custom_translation_table=_table(),
        )
    except torch.onnx.OnnxExporterError as error:
        reason = " ".join(str(error.__cause__ or error).split())[:300]
        raise IncompatibleError(f"{component.name}: torch's exporter makes no graph of it: {reason}", CURE) from None
    assert made is not None
    model: ir.Model = made.model
    common.InlinePass()(model)
    common.RemoveUnusedNodesPass()(model)
    _name_dims(model.graph, component)
    _place(model.graph, program, component)
    _narrow(model.graph)
    _flatten(model.graph)
    _strip(model)
    return model


def _table() -> dict[Callable[..., Any], Callable[..., Any]]:
    """Pieces of a tensor as values, each taken on its own."""
    from onnxscript import opset18 as op

    def pieces(x: Any, sizes: Iterable[Any], axis: int) -> tuple[Any, ...]:
        flat = op.Constant(value_ints=[-1])
        begin, found = op.Constant(value_ints=[0]), []
        for size in sizes:
            length = op.Constant(value_ints=[size]) if isinstance(size, int) else op.Reshape(size, flat)
            end = op.Add(begin, length)
            found.append(op.Slice(x, begin, end, op.Constant(value_ints=[axis])))
            begin = end
        return tuple(found)

    def split(x: Any, size: int, dim: int = 0) -> tuple[Any, ...]:
        length = x.shape[dim]
        return pieces(x, (min(size, length - at) for at in range(0, length, size)), dim)

    def split_with_sizes(x: Any, sizes: list[int], dim: int = 0) -> tuple[Any, ...]:
        return pieces(x, sizes, dim)

    def chunk(x: Any, chunks: int, dim: int = 0) -> tuple[Any, ...]:
        return split(x, -(-x.shape[dim] // chunks), dim)

    def unbind(x: Any, dim: int = 0) -> tuple[Any, ...]:
        return tuple(op.Gather(x, op.Constant(value_int=at), axis=dim) for at in range(x.shape[dim]))

    aten = torch.ops.aten
    return {
        aten.chunk.default: chunk,
        aten.split.Tensor: split,
        aten.split_with_sizes.default: split_with_sizes,
        aten.unbind.int: unbind,
    }


def _name_dims(graph: ir.Graph, component: PipelinePart) -> None:
    """Sizes in the ports' words, as ``Builder.describe`` has them; torch has them as ``s77//2``."""
    names: dict[str, str] = {}
    for value, port in zip(graph.inputs, component.inputs, strict=True):
        for axis, dim in port.dynamic.items():
            assert value.shape is not None
            names.setdefault(str(value.shape[axis]), dim)
    for node in graph:
        for value in node.outputs:
            if value.shape is not None:
                value.shape = ir.Shape([dim if isinstance(dim, int) else _named(dim, names) for dim in value.shape])


def _named(dim: ir.SymbolicDim, names: dict[str, str]) -> str | None:
    if dim.value is None:
        return None
    symbols = set(re.findall(r"\b[su]\d+\b", dim.value))
    if not symbols <= names.keys():
        return None
    return re.sub(r"\b[su]\d+\b", lambda match: names[match[0]], dim.value)


def _place(graph: ir.Graph, program: ExportedProgram, component: PipelinePart) -> None:
    """Parameters, and buffers that a file has, are in the weight file; other buffers' values are in the graph."""
    specs = {str(spec.target): spec for spec in program.graph_signature.input_specs}
    values: dict[str, torch.Tensor] | None = None
    for name, value in list(graph.initializers.items()):
        spec, tensor = specs.get(name), value.const_value
        assert tensor is not None
        shape = ir.Shape(list(tensor.shape.numpy()))
        if spec is not None and (spec.kind is InputKind.PARAMETER or spec.persistent):
            stored = parameter_name(name)
            value.const_value = ir.ExternalTensor(
                component.weights, None, None, tensor.dtype, shape=shape, name=stored
            )
            del graph.initializers[name]
            value.name = stored
            graph.initializers[stored] = value
            continue
        if spec is not None and spec.kind is InputKind.BUFFER:
            values = component.buffers() if values is None else values
            dtype = next(own for own, theirs in DTYPES.items() if theirs == tensor.dtype)
            tensor = ir.tensor(values[parameter_name(name)].to(dtype).numpy())
        try:
            array = tensor.numpy()
        except (RuntimeError, NotImplementedError):
            raise IncompatibleError(
                f"{component.name}: its constant {name} has no values where a module is built without weights",
                CURE,
            ) from None
        del graph.initializers[name]
        attribute = ir.AttrTensor("value", ir.Tensor(array, dtype=tensor.dtype, shape=shape))
        constant = ir.Node("", "Constant", [], [attribute], num_outputs=1, name=name)
        constant.outputs[0].name, constant.outputs[0].type = f"{name}:value", value.type
        graph.insert_before(graph[0], constant)
        ir.convenience.replace_all_uses_with(value, constant.outputs[0])


def _flatten(graph: ir.Graph) -> None:
    """A number that is reshaped to be an axis's place is written as one: "to the end" is known by where it stands."""
    for node in list(graph):
        if node.op_type == "Cast" and node.inputs[0] is not None:
            number = ir.convenience.get_const_tensor(node.inputs[0])
            if number is not None and number.dtype == node.attributes["to"].as_int():
                ir.convenience.replace_all_uses_with(node.outputs[0], node.inputs[0])
        if node.op_type != "Reshape":
            continue
        number, shape = (ir.convenience.get_const_tensor(value) for value in node.inputs if value is not None)
        if number is not None and shape is not None and number.size == 1 and list(shape.numpy()) == [-1]:
            tensor = ir.Tensor(number.numpy().reshape(1), dtype=number.dtype)
            constant = ir.Node("", "Constant", [], [ir.AttrTensor("value", tensor)], num_outputs=1, name=node.name)
            constant.outputs[0].name = f"{node.outputs[0].name}:value"
            graph.insert_before(node, constant)
            ir.convenience.replace_all_uses_with(node.outputs[0], constant.outputs[0])
            graph.remove(node, safe=True)


def _narrow(graph: ir.Graph) -> None:
    """float64, which TensorRT lacks, as float32: diffusers has it where devices have it, in sinusoids of positions."""
    wide, narrow = ir.DataType.DOUBLE, ir.DataType.FLOAT
    for node in graph:
        for name, attribute in list(node.attributes.items()):
            if attribute.type == ir.AttributeType.TENSOR and attribute.as_tensor().dtype == wide:
                array = attribute.as_tensor().numpy().astype(np.float32)
                node.attributes[name] = ir.AttrTensor(name, ir.Tensor(array))
            elif name in ("to", "dtype") and attribute.as_int() == wide:
                node.attributes[name] = ir.AttrInt64(name, narrow)
        for value in node.outputs:
            if value.dtype == wide:
                value.dtype = narrow


def _strip(model: ir.Model) -> None:
    """What torch notes of where each node is from: paths of this machine, and most of the bytes."""
    model.producer_name, model.producer_version, model.doc_string = "lcmmerge", None, None
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    model.graph.doc_string = None
    for node in model.graph:
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()
            value.doc_string = None
    for value in (*model.graph.inputs, *model.graph.initializers.values()):
        value.metadata_props.clear()

"""An ONNX graph in the making: values, constants, nodes and sizes."""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import onnx_ir as ir
import torch
from torch.fx import Node

from lcmmerge.errors import IncompatibleError
from lcmmerge.graphs.components.base import PipelinePart, parameter_name

DTYPES = {
    torch.float32: ir.DataType.FLOAT,
    torch.float16: ir.DataType.FLOAT16,
    torch.bfloat16: ir.DataType.BFLOAT16,
    torch.int64: ir.DataType.INT64,
    torch.int32: ir.DataType.INT32,
    torch.bool: ir.DataType.BOOL,
}
# Arithmetic of sizes, which are not negative: Div rounds as // does.
SIZES: dict[Any, str] = {operator.mul: "Mul", operator.add: "Add", operator.sub: "Sub", operator.floordiv: "Div"}


class Constants:
    """The values that are in a graph itself, as Constant nodes, shared by the nodes that want the same.

    Initializers are parameters alone: a tool may move all of them to another file, where no shape is looked for.
    bfloat16 is ``ml_dtypes``'.
    """

    def __init__(self) -> None:
        self._values: dict[tuple[Any, ...], ir.Value] = {}
        self.nodes: list[ir.Node] = []

    def __call__(self, array: np.ndarray[Any, Any]) -> ir.Value:
        dtype = ir.DataType.from_numpy(array.dtype)
        key = (dtype, array.shape, array.tobytes())
        if key not in self._values:
            name = f"constant_{len(self._values)}"
            value = ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(dtype))
            tensor = ir.Tensor(array, dtype=dtype, shape=value.shape)
            self.nodes.append(ir.Node("", "Constant", [], [ir.AttrTensor("value", tensor)], outputs=[value], name=name))
            self._values[key] = value
        return self._values[key]


class Builder:
    """A graph in the making. ``values``: what a node of the program is in it; ``known``: what it is, if a constant.

    ``grouped``: whether GroupNormalization may be in it.
    """

    def __init__(self, component: PipelinePart, opset: int, *, grouped: bool = False) -> None:
        self.component, self.opset, self.grouped = component, opset, grouped
        self.nodes: list[ir.Node] = []
        self.values: dict[Node, ir.Value | tuple[ir.Value, ...]] = {}
        self.known: dict[Node, torch.Tensor] = {}
        self.parameters: dict[str, ir.Value] = {}
        self.constants = Constants()
        self.dims: dict[Any, Any] = {}  # torch's symbol of a free size → the port's
        self._names: Counter[str] = Counter()
        self.scope = ""

    def parameter(self, name: str, tensor: torch.Tensor) -> ir.Value:
        """An initializer whose values are in the weight file, at a place yet unknown."""
        name = parameter_name(name)
        value = typed(name, tensor)
        value.shape = ir.Shape(tensor.shape)
        value.const_value = ir.ExternalTensor(
            self.component.weights, None, None, DTYPES[tensor.dtype], shape=value.shape, name=name
        )
        self.parameters[name] = value
        return value

    def unknown(self, node: Node) -> IncompatibleError:
        return self.refusal(f"torch's operator {node.target} (in {self.scope}), as it is called, has no lowering")

    def refusal(self, what: str) -> IncompatibleError:
        return IncompatibleError(
            f"{self.component.name}: {what}",
            "its config or a newer library brought it: try the versions of constraints.txt",
        )

    def describe(self, node: Node, values: ir.Value | tuple[ir.Value, ...]) -> None:
        """Give what a node of the program became its type and shape, which runtimes plan their memory by.

        They would infer most of it as they open the graph, and few sizes after a Reshape.
        """
        many, tensors = (values, node.meta["val"]) if isinstance(values, tuple) else ((values,), (node.meta["val"],))
        for value, tensor in zip(many, tensors, strict=True):
            if tensor.dtype in DTYPES:
                value.type = ir.TensorType(DTYPES[tensor.dtype])
            value.shape = ir.Shape([self._dim(size) for size in tensor.shape])

    def _dim(self, size: int | torch.SymInt) -> int | str | None:
        """A size in the ports' words, such as ``latent_height//2``; None where it depends on anything else."""
        if isinstance(size, int):
            return size
        expression = size.node.expr.xreplace(self.dims)
        return str(expression) if expression.free_symbols <= set(self.dims.values()) else None

    def value(self, item: Any, dtype: torch.dtype | None = None) -> ir.Value:
        """A node of the program or a number, in ``dtype`` (its own)."""
        if not isinstance(item, Node):
            assert dtype is not None
            return self.constant(item, dtype)
        if item in self.known:
            return self.constant(self.known[item], dtype or self.known[item].dtype)
        value = self.values[item]
        if not isinstance(value, ir.Value):  # a piece of it was meant
            raise self.unknown(item)
        if dtype not in (None, item.meta["val"].dtype):
            value = self.add("Cast", value, to=DTYPES[dtype])
        return value

    def constant(self, item: Any, dtype: torch.dtype = torch.int64) -> ir.Value:
        """A number, numbers or a tensor in ``dtype``."""
        return self.constants(_array(torch.as_tensor(item).to(dtype).contiguous()))

    def add(self, operator: str, *inputs: ir.Value | None, name: str | None = None, **attributes: Any) -> ir.Value:
        """A node of one output, named as the module that it comes from."""
        return self.add_many(operator, *inputs, names=(name,), **attributes)[0]

    def add_many(
        self, operator: str, *inputs: ir.Value | None, names: Sequence[str | None], **attributes: Any
    ) -> tuple[ir.Value, ...]:
        stem = f"{self.scope}/{operator}" if self.scope else operator
        number = self._names[stem]
        self._names[stem] += 1
        stem = f"{stem}_{number}" if number else stem
        outputs = [ir.Value(name=name or (f"{stem}:{at}" if at else stem)) for at, name in enumerate(names)]
        items = ir.convenience.convert_attributes(attributes)
        self.nodes.append(ir.Node("", operator, inputs, items, outputs=outputs, name=stem))
        return tuple(outputs)

    def size(self, item: int | Node) -> ir.Value:
        """A size as int64 [1]. torch has it as arithmetic on the sizes of tensors."""
        if isinstance(item, int):
            return self.constant([item])
        if item not in self.values:
            if str(item.target) == "aten.sym_size.int":
                tensor, axis = cast(tuple[Node, int], item.args)
                self.values[item] = self.add("Shape", self.value(tensor), start=axis, end=axis + 1)
            elif item.target not in SIZES:
                raise self.unknown(item)
            else:
                left, right = map(self.size, cast(tuple[int | Node, ...], item.args))
                self.values[item] = self.add(SIZES[item.target], left, right)
        value = self.values[item]
        assert isinstance(value, ir.Value)
        return value

    def shape(self, items: Sequence[int | Node]) -> ir.Value:
        """Sizes side by side, int64 [n]."""
        if all(isinstance(item, int) for item in items):
            return self.constant(list(items))
        return self.add("Concat", *map(self.size, items), axis=0)


def typed(name: str, tensor: torch.Tensor) -> ir.Value:
    return ir.Value(name=name, type=ir.TensorType(DTYPES[tensor.dtype]))


def _array(tensor: torch.Tensor) -> np.ndarray[Any, Any]:
    """NumPy has no bfloat16 of its own; ml_dtypes, which ONNX's libraries use, adds one."""
    if tensor.dtype is torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(ir.DataType.BFLOAT16.numpy())
    return tensor.numpy()

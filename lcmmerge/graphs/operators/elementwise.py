"""Operators that keep the shape of their operands, or broadcast it: activations, arithmetic, casts."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch.fx import Node

from lcmmerge.graphs.operators.base import Values, lowers

if TYPE_CHECKING:
    from lcmmerge.graphs.building import Builder


@lowers("silu.default")
def silu(graph: Builder, node: Node, x: Node) -> Values:
    return graph.add("Mul", graph.value(x), graph.add("Sigmoid", graph.value(x)))


@lowers("gelu.default")
def gelu(graph: Builder, node: Node, x: Node, *, approximate: str = "none") -> Values:
    """Before opset 20 by its definition, x/2 · (1 + erf(x/√2)), arXiv:1606.08415."""
    if approximate != "none":
        raise graph.unknown(node)
    value, dtype = graph.value(x), node.meta["val"].dtype
    if graph.opset >= 20:
        return graph.add("Gelu", value)
    erf = graph.add("Erf", graph.add("Mul", value, graph.constant(math.sqrt(0.5), dtype)))
    half = graph.add("Mul", value, graph.constant(0.5, dtype))
    return graph.add("Mul", half, graph.add("Add", erf, graph.constant(1.0, dtype)))


def unary(name: str) -> Callable[..., Values]:
    return lambda graph, node, x: graph.add(name, graph.value(x))


for _name in ("cos", "erf", "exp", "neg", "relu", "sigmoid", "sin", "sqrt", "tanh"):
    lowers(f"{_name}.default")(unary(_name.capitalize()))


def binary(name: str, neutral: float | None = None) -> Callable[..., Values]:
    """An operator on tensors or numbers, in the dtype that torch promotes them to."""

    def lower(graph: Builder, node: Node, left: Node, right: Node | float) -> Values:
        if isinstance(right, int | float) and right == neutral:
            return graph.value(left, node.meta["val"].dtype)
        dtype = node.meta["val"].dtype
        if dtype is torch.bool:  # a comparison: its operands' own
            dtype = left.meta["val"].dtype
        return graph.add(name, graph.value(left, dtype), graph.value(right, dtype))

    return lower


lowers("add.Tensor")(binary("Add", 0))
lowers("sub.Tensor")(binary("Sub", 0))
lowers("mul.Tensor")(binary("Mul", 1))
lowers("div.Tensor")(binary("Div", 1))
lowers("eq.Scalar", "eq.Tensor")(binary("Equal"))


lowers("pow.Tensor_Scalar")(binary("Pow", 1))


@lowers("rsqrt.default")
def rsqrt(graph: Builder, node: Node, x: Node) -> Values:
    return graph.add("Div", graph.constant(1.0, node.meta["val"].dtype), graph.add("Sqrt", graph.value(x)))


@lowers("mean.dim")
def mean(
    graph: Builder, node: Node, x: Node, axes: Sequence[int], keep: bool = False, *, dtype: torch.dtype | None = None
) -> Values:
    return graph.add("ReduceMean", graph.value(x, dtype), graph.constant(list(axes)), keepdims=int(keep))


@lowers("where.self", "where.ScalarOther", "where.ScalarSelf", "where.Scalar")
def where(graph: Builder, node: Node, condition: Node, yes: Node | float, no: Node | float) -> Values:
    dtype = node.meta["val"].dtype
    return graph.add("Where", graph.value(condition), graph.value(yes, dtype), graph.value(no, dtype))


@lowers("to.dtype", "to.dtype_layout", "to.device")
def cast(graph: Builder, node: Node, x: Node, *_: Any, **__: Any) -> Values:
    return graph.value(x, node.meta["val"].dtype)

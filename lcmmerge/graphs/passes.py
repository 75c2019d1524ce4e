"""The last passes over a lowered graph. None folds, transposes or merges parameters: they keep their names."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from lcmmerge.errors import IncompatibleError
from lcmmerge.graphs.components.base import PipelinePart, Port

if TYPE_CHECKING:
    import onnx_ir as ir

# What we emit: ONNX Runtime's providers and TensorRT's parser know each. No Sequence, no If, no Loop.
OPERATORS = frozenset(
    {
        *("Add", "Div", "Mul", "Sub", "Erf", "Exp", "Cos", "Sin", "Neg", "Sqrt", "Sigmoid", "Tanh", "Gelu", "Softmax"),
        *("MatMul", "Gemm", "Conv", "Attention", "Resize", "Pad"),
        *("GroupNormalization", "InstanceNormalization", "LayerNormalization"),
        *("Cast", "Identity", "Shape", "Reshape", "Expand", "Transpose", "Unsqueeze", "Concat", "Split", "Slice"),
        *("Gather", "GatherND", "ArgMax", "Equal", "Range"),
        *("Clip", "Round"),  # of a whole pipeline, which ends in an image
    }
)


def finish(model: ir.Model, component: PipelinePart) -> ir.Model:
    """Nothing that inference has no use for, and the ports as their component has them.

    Raises IncompatibleError for an operator that we do not emit.
    """
    from onnx_ir.passes import common

    common.IdentityEliminationPass()(model)
    common.RemoveUnusedNodesPass()(model)
    common.CommonSubexpressionEliminationPass()(model)
    check_operators(model.graph, component)
    _name_dims(model.graph.inputs, component.inputs)
    _name_dims(model.graph.outputs, component.outputs)
    return model


def check_operators(nodes: Iterable[ir.Node], component: PipelinePart) -> None:
    """Raises IncompatibleError naming the first operator that is not one of ``OPERATORS``."""
    for node in nodes:
        if node.domain or node.op_type not in OPERATORS:
            operator = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
            raise IncompatibleError(
                f"{component.name}: its graph has the operator {operator} (node {node.name}), which we do not emit",
                "a newer torch may have brought it: install the versions in constraints.txt",
            )


def _name_dims(values: Iterable[ir.Value], ports: Iterable[Port]) -> None:
    import onnx_ir as ir

    for value, port in zip(values, ports, strict=True):
        value.shape = ir.Shape(port.dims)

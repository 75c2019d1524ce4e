"""A component as an ONNX graph, made without its weights.

The module stands on torch's meta device, so a graph costs the memory of its nodes. A parameter becomes an
initializer of its own name, whose values are to be looked for in the component's weight file (``link.py``).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from lcmmerge.errors import IncompatibleError
from lcmmerge.graphs.components import PipelinePart
from lcmmerge.graphs.components.base import Port

if TYPE_CHECKING:
    import onnx_ir as ir
    import torch
    from torch.export import ExportedProgram

# 18 is what old runtimes have, too; 23 brought Attention. Grouped: fused, with GroupNormalization, which is TensorRT's.
OPSETS = {"plain": 18, "fused": 23, "grouped": 23}
BFLOAT16 = 22  # the first whose Conv and InstanceNormalization are for bfloat16

# What we emit: ONNX Runtime's providers and TensorRT's parser know each. No Sequence, no If, no Loop.
OPERATORS = frozenset(
    {
        *("Add", "Div", "Mul", "Sub", "Erf", "Exp", "Cos", "Sin", "Neg", "Sqrt", "Sigmoid", "Tanh", "Gelu", "Softmax"),
        *("Pow", "Relu", "Reciprocal"),
        *("MatMul", "Gemm", "Conv", "Attention", "Resize", "Pad"),
        *("GroupNormalization", "InstanceNormalization", "LayerNormalization"),
        *("Constant", "Squeeze", "CastLike", "Einsum"),
        *("Cast", "Identity", "Shape", "Reshape", "Expand", "Transpose", "Unsqueeze", "Concat", "Split", "Slice"),
        *("Gather", "GatherND", "ArgMax", "Equal", "Range", "ReduceMean", "Where"),
        *("Clip", "Round"),  # of a whole pipeline, which ends in an image
    }
)


def opset_of(variant: str, dtype: torch.dtype) -> int:
    """The version of ONNX's operators that a graph is written in."""
    return max(OPSETS[variant], BFLOAT16) if str(dtype) == "torch.bfloat16" else OPSETS[variant]


def graphs_of(component: PipelinePart, dtype: torch.dtype, variants: Iterable[str]) -> dict[str, ir.Model]:
    """The graphs of ``component`` in ``dtype``, by variant: ``plain``; ``fused`` and ``grouped`` with Attention nodes.

    Nearly all of the time goes into the trace. Raises FormatError (of the config), IncompatibleError (an operator that
    we do not know).
    """
    return trace(component, dtype, {variant: opset_of(variant, dtype) for variant in variants})


def trace(component: PipelinePart, dtype: torch.dtype, opsets: Mapping[str, int]) -> dict[str, ir.Model]:
    """As ``graphs_of``, each variant in an opset that is asked for."""
    program = _trace(component, dtype)
    return {variant: _finish(_made(program, component, variant, opset), component) for variant, opset in opsets.items()}


def _made(program: ExportedProgram, component: PipelinePart, variant: str, opset: int) -> ir.Model:
    if component.lowered:
        from lcmmerge.graphs.lowering import lower

        return lower(program, component, opset, grouped=variant == "grouped")
    from lcmmerge.graphs.translation import translate

    return translate(program, component, opset)


def _trace(component: PipelinePart, dtype: torch.dtype) -> ExportedProgram:
    import torch
    from torch.export import Dim, ShapesCollection

    module, example = component.module(dtype), component.example(dtype)
    free: Any = ShapesCollection()  # type: ignore[no-untyped-call]
    for port, tensor in zip(component.inputs, example, strict=True):
        free[tensor] = dict.fromkeys(port.dynamic, Dim.AUTO)
    # With free sizes, to look for what it knows of an operator costs torch a third more than to ask it again.
    with torch.no_grad(), torch._dynamo.config.patch(fake_tensor_cache_enabled=False):
        return torch.export.export(module, example, dynamic_shapes=free, strict=False)


def _finish(model: ir.Model, component: PipelinePart) -> ir.Model:
    """The last passes: nothing that inference has no use for, and the ports as their component has them.

    None folds, transposes or merges parameters: they keep their names.

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

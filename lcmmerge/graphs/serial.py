"""A graph as bytes, the same in every process."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx_ir as ir


def serialise(graph: ir.Model) -> bytes:
    """Types and shapes are told of what nodes make; parameters and constants have their own.

    Told twice of a parameter, they are in the way of a tool that writes it otherwise, such as ONNX Runtime's quantizer.
    """
    import onnx_ir as ir

    model = ir.to_proto(graph)
    own = {tensor.name for tensor in model.graph.initializer}
    own |= {node.output[0] for node in model.graph.node if node.op_type == "Constant"}
    told = [value for value in model.graph.value_info if value.name not in own]
    del model.graph.value_info[:]
    model.graph.value_info.extend(told)
    data: bytes = model.SerializeToString(deterministic=True)
    return data

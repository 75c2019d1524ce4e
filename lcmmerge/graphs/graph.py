"""A component as an ONNX graph, made without its weights.

The module stands on torch's meta device, so a graph costs the memory of its nodes. A parameter becomes an
initializer of its own name, whose values are to be looked for in the component's weight file (``link.py``).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from lcmmerge.graphs.components import PipelinePart
from lcmmerge.graphs.passes import finish

if TYPE_CHECKING:
    import onnx_ir as ir
    import torch
    from torch.export import ExportedProgram

OPSETS = {"plain": 18, "fused": 23}  # 18 is what old runtimes have, too; 23 brought Attention
BFLOAT16 = 22  # the first whose Conv and InstanceNormalization are for bfloat16


def opset_of(variant: str, dtype: torch.dtype) -> int:
    """The version of ONNX's operators that a graph is written in."""
    return max(OPSETS[variant], BFLOAT16) if str(dtype) == "torch.bfloat16" else OPSETS[variant]


def graphs_of(component: PipelinePart, dtype: torch.dtype, variants: Iterable[str]) -> dict[str, ir.Model]:
    """The graphs of ``component`` in ``dtype``, by variant: ``plain``, or ``fused`` with Attention nodes.

    Nearly all of the time goes into what they share. Raises FormatError (of the config), IncompatibleError (an operator
    that we do not know).
    """
    from lcmmerge.graphs.lowering import lower

    program = _trace(component, dtype)
    opsets = {variant: opset_of(variant, dtype) for variant in variants}
    return {variant: finish(lower(program, component, opset), component) for variant, opset in opsets.items()}


def _trace(component: PipelinePart, dtype: torch.dtype) -> ExportedProgram:
    import torch
    from torch.export import Dim, ShapesCollection

    module, example = component.module(dtype), component.example(dtype)
    free: Any = ShapesCollection()  # type: ignore[no-untyped-call]
    for port, tensor in zip(component.inputs, example, strict=True):
        free[tensor] = dict.fromkeys(port.dynamic, Dim.AUTO)
    with torch.no_grad():
        return torch.export.export(module, example, dynamic_shapes=free, strict=False)

"""torch's operators as ONNX's, one function each: the graph in the making, the call's node, its arguments → its value.

``layers`` has those with parameters and what is as large, ``elementwise`` those that keep a shape, ``shapes`` the rest.
Names and arguments: https://docs.pytorch.org/docs/stable/torch.compiler_ir.html; ONNX's operators:
https://onnx.ai/onnx/operators.
"""

from lcmmerge.graphs.operators import elementwise, layers, shapes
from lcmmerge.graphs.operators.base import IDENTITIES, OPERATORS

__all__ = ["IDENTITIES", "OPERATORS", "elementwise", "layers", "shapes"]

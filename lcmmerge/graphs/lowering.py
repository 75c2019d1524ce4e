"""From torch's exported program to ONNX, operator by operator.

The exporter of torch decomposes a program into core operators and back into ONNX's, which takes most of its time,
leaves sequences that TensorRT refuses, and wants an optimiser that loses parameters' names. The few operators that
diffusion models are of go straight to ONNX here (``operators``), and sizes stay out of the graph where ONNX's
Reshape can infer them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import onnx_ir as ir
import torch
from torch.fx import Node

from lcmmerge.graphs.building import DTYPES, Builder, typed
from lcmmerge.graphs.components.base import MODULE, PipelinePart, parameter_name
from lcmmerge.graphs.operators import IDENTITIES, OPERATORS

if TYPE_CHECKING:
    from torch.export import ExportedProgram

IR_VERSIONS = {18: 8, 22: 10, 23: 11}  # that came with the opset: older runtimes refuse newer ones


def lower(program: ExportedProgram, component: PipelinePart, opset: int, *, grouped: bool = False) -> ir.Model:
    """The program as a graph. Raises IncompatibleError for an operator of torch that has no lowering."""
    lowering = Builder(component, opset, grouped=grouped)
    parameters = program.graph_signature.inputs_to_parameters
    inputs, ports = [], iter(component.inputs)
    for node in program.graph.nodes:
        if node.op == "placeholder" and node.name in parameters:
            lowering.values[node] = lowering.parameter(parameters[node.name], node.meta["val"])
        elif node.op == "placeholder" and node.name not in program.graph_signature.inputs_to_buffers:
            value = lowering.values[node] = typed(next(ports).name, node.meta["val"])
            inputs.append(value)
        elif node.op == "call_function":
            _run(lowering, node)
    (results,) = program.graph.output_node().args
    outputs = []
    for port, node in zip(component.outputs, results, strict=True):
        output = lowering.add("Identity", lowering.value(node), name=port.name)
        output.type = ir.TensorType(DTYPES[node.meta["val"].dtype])
        outputs.append(output)
    graph = ir.Graph(
        inputs,
        outputs,
        nodes=lowering.nodes,
        initializers=[*lowering.parameters.values(), *lowering.constants.values()],
        opset_imports={"": opset},
        name=component.name,
    )
    return ir.Model(graph, ir_version=IR_VERSIONS[opset], producer_name="lcmmerge")


def _run(graph: Builder, node: Node) -> None:
    """Lower one call. What depends on constants alone is computed by torch, now."""
    target = str(node.target)
    if isinstance(node.meta.get("val"), torch.SymInt) or not node.users:  # sizes: see ``size``
        return
    if _computable(graph, node):
        arguments = torch.fx.map_arg((node.args, node.kwargs), lambda item: graph.known[item])
        graph.known[node] = _compute(node.target, *arguments)
        return
    graph.scope = _scope(node)
    if target in IDENTITIES:
        graph.values[node] = graph.value(node.args[0])
    elif target in OPERATORS:
        graph.values[node] = OPERATORS[target](graph, node, *node.args, **node.kwargs)
    else:
        raise graph.unknown(node)


def _computable(graph: Builder, node: Node) -> bool:
    tensor = isinstance(node.meta.get("val"), torch.Tensor)
    return tensor and all(item in graph.known for item in node.all_input_nodes)


def _compute(target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
    """On the CPU what the program has on the meta device."""
    places = {key: torch.device("cpu") for key in kwargs if key == "device"}
    result: torch.Tensor = target(*args, **(kwargs | places))
    return result


def _scope(node: Node) -> str:
    """The path of the module that a call is of, without our wrapper's."""
    stack = list(node.meta.get("nn_module_stack", {}).values())
    path = str(stack[-1][0]) if stack else ""
    return "" if path == MODULE.rstrip(".") else parameter_name(path)

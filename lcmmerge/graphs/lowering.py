"""From torch's exported program to ONNX, operator by operator.

The exporter of torch decomposes a program into core operators and back into ONNX's, which takes most of its time,
leaves sequences that TensorRT refuses, and wants an optimiser that loses parameters' names. The few operators that
diffusion models are of go straight to ONNX here (``operators``), and sizes stay out of the graph where ONNX's
Reshape can infer them.
"""

from __future__ import annotations

from collections.abc import Callable
from inspect import signature
from typing import TYPE_CHECKING, Any

import onnx_ir as ir
import torch
from sympy import Symbol  # torch's own, for sizes
from torch.export.graph_signature import InputKind
from torch.fx import Node

from lcmmerge.graphs.building import DTYPES, Builder, typed
from lcmmerge.graphs.components.base import MODULE, PipelinePart, Port, parameter_name
from lcmmerge.graphs.operators import IDENTITIES, OPERATORS
from lcmmerge.graphs.operators.base import Values

if TYPE_CHECKING:
    from torch.export import ExportedProgram

IR_VERSIONS = {18: 8, 22: 10, 23: 11}  # that came with the opset: older runtimes refuse newer ones


def lower(program: ExportedProgram, component: PipelinePart, opset: int, *, grouped: bool = False) -> ir.Model:
    """The program as a graph.

    Raises IncompatibleError: an operator of torch that has no lowering, or writes in place; a buffer that is used,
    which no weight file is sure to have.
    """
    lowering = Builder(component, opset, grouped=grouped)
    check_writes(program, lowering)
    inputs = _inputs(lowering, program)
    for node in program.graph.nodes:
        if node.op == "call_function":
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
        nodes=[*lowering.constants.nodes, *lowering.nodes],
        initializers=list(lowering.parameters.values()),
        opset_imports={"": opset},
        name=component.name,
    )
    return ir.Model(graph, ir_version=IR_VERSIONS[opset], producer_name="lcmmerge")


def check_writes(program: ExportedProgram, graph: Builder) -> None:
    """Refuse a program that writes in place: nothing asks for what such a call gives, and ONNX has no such thing.

    Raises IncompatibleError.
    """
    for node in program.graph.nodes:
        writes = getattr(getattr(node.target, "_schema", None), "is_mutable", False)
        if writes and str(node.target) not in IDENTITIES and not _owns(node):
            raise graph.refusal(f"torch's operator {node.target} (in {_scope(node)}) writes in place")


def _owns(node: Node) -> bool:
    """Whether what a call writes to is seen by nobody else, so that its result is all that it does: ``a @ b`` += c."""
    written, *rest = node.all_input_nodes
    schema = getattr(written.target, "_schema", None)
    made = schema is not None and all(returned.alias_info is None for returned in schema.returns)
    made = made or bool(schema is not None and schema.is_mutable and _owns(written))
    alone = len(written.users) == 1 and written is node.args[0] and written not in rest
    return made and alone and bool(node.users) and str(written.target) not in IDENTITIES


def _inputs(graph: Builder, program: ExportedProgram) -> list[ir.Value]:
    """The program's placeholders: parameters, which are in the weight file, the graph's inputs, numbers of the code."""
    inputs: list[ir.Value] = []
    ports = iter(graph.component.inputs)
    nodes = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    for spec in program.graph_signature.input_specs:
        node = nodes[spec.arg.name]
        match spec.kind:
            case InputKind.PARAMETER:
                graph.values[node] = graph.parameter(str(spec.target), node.meta["val"])
            case InputKind.USER_INPUT:
                port = next(ports)
                inputs.append(typed(port.name, node.meta["val"]))
                graph.values[node] = inputs[-1]
                _name_sizes(graph, node.meta["val"], port)
            case InputKind.CONSTANT_TENSOR:
                graph.known[node] = program.constants[str(spec.target)]
            case _ if node.users:
                raise graph.refusal(f"its buffer {spec.target} is used, and a graph is made without buffers' values")
    return inputs


def _name_sizes(graph: Builder, tensor: torch.Tensor, port: Port) -> None:
    for axis, dim in port.dynamic.items():
        size = tensor.shape[axis]
        if isinstance(size, torch.SymInt) and size.node.expr.is_Symbol:
            graph.dims.setdefault(size.node.expr, Symbol(dim, integer=True, positive=True))


def _run(graph: Builder, node: Node) -> None:
    """Lower one call. What depends on constants alone is computed by torch, now."""
    target = str(node.target)
    if target not in IDENTITIES:
        target = target.replace("_.", ".")  # of one that writes to what is its own: see ``check_writes``
    if isinstance(node.meta.get("val"), torch.SymInt) or not node.users:  # sizes: see ``size``
        return
    if _computable(graph, node):
        arguments = torch.fx.map_arg((node.args, node.kwargs), lambda item: graph.known[item])
        graph.known[node] = _compute(node.target, *arguments)
        return
    graph.scope = _scope(node)
    if target in IDENTITIES:
        graph.values[node] = graph.value(node.args[0])
    elif _takes(OPERATORS.get(target), graph, node):
        graph.values[node] = OPERATORS[target](graph, node, *node.args, **node.kwargs)
    else:
        raise graph.unknown(node)
    graph.describe(node, graph.values[node])


def _takes(function: Callable[..., Values] | None, graph: Builder, node: Node) -> bool:
    """Whether there is a lowering, which names each argument of the call."""
    try:
        return function is not None and bool(signature(function).bind(graph, node, *node.args, **node.kwargs))
    except TypeError:
        return False


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

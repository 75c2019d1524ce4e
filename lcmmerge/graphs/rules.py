"""What every graph of an export keeps to, so that every runtime takes it, and TensorRT builds it: one function a rule.

Each yields what breaks its rule, in words: which node, which operator. The specification:
https://onnx.ai/onnx/repo-docs/IR.html.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto

from lcmmerge.errors import LcmMergeError
from lcmmerge.graphs.graph import OPERATORS
from lcmmerge.graphs.link import check_link
from lcmmerge.refs.files import is_inside, link_in

ONNX = ("", "ai.onnx")  # the domains of its own operators
INT32 = range(-(2**31), 2**31)
TO_THE_END = (2**63 - 1, -(2**63))  # a Slice's, which every runtime cuts to the axis
FLOW = {"If", "Loop", "Scan"}
SAFETENSORS = ".safetensors"
Shapes = Mapping[str, Sequence[Sequence[int]]]  # input → least, usual, most


@dataclass(frozen=True, slots=True)
class Graph:
    """A graph to be checked; of an export's also its component, that one's dtype, and its variant.

    ``title``: its path below the folder that is checked; ``profiles``: name → shapes of its inputs.
    """

    path: Path
    title: str
    model: ModelProto
    profiles: Mapping[str, Shapes]
    component: str = ""
    dtype: str = ""
    variant: str = ""

    def nodes(self) -> Iterator[NodeProto]:
        """Also those within nodes and functions."""
        yield from _nodes(self.model.graph.node)
        for function in self.model.functions:
            yield from _nodes(function.node)

    def tensors(self) -> Iterator[tuple[str, str, TensorProto]]:
        """Initializers and constants in nodes: the value that each is, its name in words, itself."""
        for graph in (self.model.graph, *_subgraphs(self.nodes())):
            yield from ((tensor.name, repr(tensor.name), tensor) for tensor in graph.initializer)
            for sparse in graph.sparse_initializer:
                name = sparse.values.name
                yield from ((name, repr(name), part) for part in (sparse.values, sparse.indices))
        for node in self.nodes():
            for attribute in node.attribute:
                tensors = [*attribute.tensors, *([attribute.t] if attribute.HasField("t") else [])]
                title = f"{attribute.name} of {label(node)}"
                yield from ((node.output[0], title, tensor) for tensor in tensors)


def places(graph: Graph) -> Iterator[str]:
    """External data lie in the graph's own folder or below it, in plain files that are long enough."""
    for _, name, tensor in graph.tensors():
        if tensor.data_location != TensorProto.EXTERNAL:
            continue
        entries = {entry.key: entry.value for entry in tensor.external_data}
        location = entries.get("location", "")
        file = graph.path.parent / location
        if not is_inside(location):
            yield f"the data of {name} are at {location!r}, out of the graph's folder"
        elif link_in(graph.path.parent, location):
            yield f"the data of {name} are in {location!r}, a symbolic link"
        elif not file.is_file():
            yield f"the data of {name} are in {location!r}, which is not there"
        elif not all(entries.get(key, "0").isdecimal() for key in ("offset", "length")):
            yield f"the data of {name} have an offset or a length that is not a number"
        elif int(entries.get("offset", 0)) + int(entries.get("length", 0)) > file.stat().st_size:
            yield f"the data of {name} end beyond the end of {location!r}: it is truncated"
        else:
            continue
        return


def links(graph: Graph) -> Iterator[str]:
    """Each parameter is in the weight file by its name, where the graph says."""
    places = (entry for *_, tensor in graph.tensors() for entry in tensor.external_data if entry.key == "location")
    if all(place.value.endswith(SAFETENSORS) for place in places):
        try:
            check_link(graph.path)
        except LcmMergeError as error:
            yield error.message


def specification(graph: Graph) -> Iterator[str]:
    """ONNX's own checker, with inference of types and shapes."""
    try:
        onnx.checker.check_model(str(graph.path), full_check=True)
    except Exception as error:  # the checker's and the inference's have no common base but Exception
        yield " ".join(str(error).split())[:300]


def operators(graph: Graph) -> Iterator[str]:
    """Those that ONNX Runtime's providers and TensorRT's parser both take: no sequences, no control flow."""
    for node in graph.nodes():
        if node.domain in ONNX and node.op_type in OPERATORS:
            continue
        kind = "control flow" if node.op_type in FLOW else "a sequence" if "Sequence" in node.op_type else ""
        yield f"{label(node)} is " + (kind or "of an operator that we do not emit")
    for function in graph.model.functions:
        yield f"{function.name!r} is a local function"


def types(graph: Graph) -> Iterator[str]:
    """No float64: TensorRT has none."""
    for value in (*graph.model.graph.input, *graph.model.graph.output, *graph.model.graph.value_info):
        if value.type.tensor_type.elem_type == TensorProto.DOUBLE:
            yield f"{value.name!r} is float64"
    for _, name, tensor in graph.tensors():
        if tensor.data_type == TensorProto.DOUBLE:
            yield f"{name} is float64"
    for node in graph.nodes():
        if any(item.name in ("to", "dtype") and item.i == TensorProto.DOUBLE for item in node.attribute):
            yield f"{label(node)} makes float64"


def integers(graph: Graph) -> Iterator[str]:
    """Whole numbers fit into int32, which is what TensorRT's shapes are; but a Slice's "to the end" may stay."""
    ends = {name for node in graph.nodes() if node.op_type == "Slice" for name in node.input[1:3]}
    for value, name, tensor in graph.tensors():
        if tensor.data_type == TensorProto.INT64 and tensor.data_location != TensorProto.EXTERNAL:
            allowed = TO_THE_END if value in ends else ()
            try:
                numbers = map(int, onnx.numpy_helper.to_array(tensor).flatten())
            except ValueError:
                yield f"{name} has another number of values than its shape says"
                continue
            if wrong := [number for number in numbers if number not in INT32 and number not in allowed]:
                yield f"{name} is {wrong[0]}, which int32 does not hold"


def profiles(graph: Graph) -> Iterator[str]:
    """Each profile gives each input with a free axis three shapes that grow, and are the graph's on its other axes."""
    for profile, shapes in graph.profiles.items():
        for value in graph.model.graph.input:
            dims = value.type.tensor_type.shape.dim
            free = any(not dim.HasField("dim_value") for dim in dims)
            if (free or value.name in shapes) and (wrong := _misfit(dims, shapes.get(value.name, ()))):
                yield f"profile {profile}, input {value.name!r}: {wrong}"
        for name in sorted(shapes.keys() - {value.name for value in graph.model.graph.input}):
            yield f"profile {profile}: the graph has no input {name!r}"


def _misfit(dims: Sequence[Any], given: Sequence[Sequence[int]]) -> str:
    if not given:
        return "has a free axis, and no shapes"
    if len(given) != 3 or any(len(shape) != len(dims) for shape in given):
        return "is not given three shapes of its rank"
    for axis, (dim, *sizes) in enumerate(zip(dims, *given, strict=True)):
        if sorted(sizes) != sizes or sizes[0] < 1:
            return f"axis {axis} goes from {sizes[0]} over {sizes[1]} to {sizes[2]}"
        if dim.HasField("dim_value") and set(sizes) != {dim.dim_value}:
            return f"axis {axis} is {dim.dim_value} in the graph, and not free"
    return ""


RULES: Mapping[str, Callable[[Graph], Iterator[str]]] = {
    "link": links,
    "specification": specification,
    "operators": operators,
    "types": types,
    "integers": integers,
    "profiles": profiles,
}


def label(node: NodeProto) -> str:
    """``Softmax 'node_softmax_3'``."""
    kind = f"{node.domain}::{node.op_type}" if node.domain else node.op_type
    return f"{kind} {node.name!r}"


def _nodes(nodes: Iterable[NodeProto]) -> Iterator[NodeProto]:
    for node in nodes:
        yield node
        for graph in _subgraphs([node]):
            yield from _nodes(graph.node)


def _subgraphs(nodes: Iterable[NodeProto]) -> Iterator[GraphProto]:
    for node in nodes:
        for attribute in node.attribute:
            if attribute.type == AttributeProto.GRAPH:
                yield attribute.g
            yield from attribute.graphs

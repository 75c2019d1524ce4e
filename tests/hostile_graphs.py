"""Hostile ONNX models: what a parser, a checker, a rewriter and a runtime would believe of them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from random import Random
from typing import Any

import onnx
from damage import Mutation
from onnx import TensorProto, helper

PLACES = (
    "../../../etc/passwd", "/etc/passwd", "..\\x", "", "\0", "a/../../x", "/dev/zero", "C:\\x", ".", "é😀", "x" * 300,
)  # fmt: skip
NUMBERS = ("-1", "x", str(2**70), str(2**63), "", "1e9", "0x10", " 4", "4096")
NAMES = ("", "x\n", "\x1b[31m", "x" * 70_000, "a/b", "é😀", "\0")
SHAPES = ([-1], [0], [2**40, 2**40], [], [1] * 999, [2**62], [1, 1])
TYPES = (0, 1, 2, 6, 7, 8, 9, 10, 11, 16, 22, 99)  # TensorProto.DataType, and some that are none
OPERATORS = ("", "Loop", "If", "Scan", "NoSuchThing", "SequenceAt", "Cast", "Reshape", "MatMul", "Constant", "Shape")


def _external(model: onnx.ModelProto, random: Random) -> None:
    """The place of a tensor's external data."""
    tensor = _initializer(model, random)
    key, value = random.choice((("location", random.choice(PLACES)), ("offset", random.choice(NUMBERS)),
                                ("length", random.choice(NUMBERS)), ("checksum", "0" * 40), ("", "")))  # fmt: skip
    tensor.data_location = TensorProto.EXTERNAL
    found = {entry.key: entry.value for entry in tensor.external_data} | {key: value}
    del tensor.external_data[:]
    for name, text in found.items():
        tensor.external_data.add(key=name, value=text)


def _tensor(model: onnx.ModelProto, random: Random) -> None:
    """A tensor's shape, type, name or content."""
    tensor = _initializer(model, random)
    match random.randrange(6):
        case 0:
            tensor.dims[:] = random.choice(SHAPES)
        case 1:
            tensor.data_type = random.choice(TYPES)
        case 2:
            tensor.name = random.choice((*NAMES, *(name for node in model.graph.node[:3] for name in node.output)))
        case 3:
            tensor.raw_data = random.choice((b"", b"\0", random.randbytes(33)))
        case 4:
            tensor.ClearField("raw_data")
            tensor.float_data.extend([float("nan")] * random.choice((0, 1, 5)))
        case 5:
            model.graph.initializer.add().CopyFrom(tensor)


def _node(model: onnx.ModelProto, random: Random) -> None:
    node = _node_of(model, random)
    match random.randrange(7):
        case 0:
            node.op_type = random.choice(OPERATORS)
        case 1:
            node.input.extend(random.choice(([""], ["nowhere"], list(node.output), ["x"] * 5000)))
        case 2:
            del node.input[:1]
        case 3:
            del node.output[:1]
        case 4:
            node.output[:] = list(random.choice(list(model.graph.node)).output)
        case 5:
            node.domain = random.choice(("com.microsoft", "ai.onnx.ml", "x", "../x"))
        case 6:
            model.graph.node.add().CopyFrom(node)


def _attribute(model: onnx.ModelProto, random: Random) -> None:
    """An attribute's value or kind, in a node that has some where there is one."""
    nodes = [node for node in model.graph.node if node.attribute] or [_node_of(model, random)]
    node = random.choice(nodes)
    attribute = random.choice(list(node.attribute)) if node.attribute else node.attribute.add(name="axis")
    match random.randrange(6):
        case 0:
            attribute.i = random.choice((-1, 0, 2**62, -(2**62)))
        case 1:
            attribute.type = random.randrange(16)
        case 2:
            attribute.ints.extend([2**40] * random.choice((1, 3, 5000)))
        case 3:
            attribute.name = random.choice(NAMES)
        case 4:
            attribute.t.CopyFrom(helper.make_tensor("t", TensorProto.INT64, [1], [2**62]))
        case 5:
            node.attribute.remove(attribute)


def _nested(model: onnx.ModelProto, random: Random) -> None:
    inner = helper.make_graph([], "g", [], [])
    for _ in range(random.choice((5, 20))):
        inner = helper.make_graph([helper.make_node("If", [], [], then_branch=inner)], "g", [], [])
    model.graph.node.append(helper.make_node("If", ["x"], ["y"], then_branch=inner))


def _value(model: onnx.ModelProto, random: Random) -> None:
    """An input or output of the graph."""
    values = random.choice((model.graph.input, model.graph.output))
    value = random.choice(list(values)) if values else values.add(name="x")
    match random.randrange(6):
        case 0:
            value.name = random.choice(NAMES)
        case 1:
            value.type.tensor_type.elem_type = random.choice(TYPES)
        case 2:
            dims = value.type.tensor_type.shape.dim
            dims.add() if not dims else None
            dims[random.randrange(len(dims))].dim_value = random.choice((-1, 0, 3, 2**40))
        case 3:
            values.remove(value)
        case 4:
            values.add().CopyFrom(value)
        case 5:
            value.type.Clear()


def _model(model: onnx.ModelProto, random: Random) -> None:
    match random.randrange(6):
        case 0:
            model.ir_version = random.choice((0, 1, 99, 2**40))
        case 1:
            del model.opset_import[:]
        case 2:
            model.opset_import[0].version = random.choice((-1, 0, 1, 99, 2**40))
        case 3:
            model.opset_import.add(domain=random.choice(("", "com.microsoft", "x")), version=random.choice((1, 99)))
        case 4:
            model.metadata_props.add(key=random.choice(("", "lcmmerge", "x" * 10**6)), value="[" * 10**5)
        case 5:
            model.graph.Clear()


def _order(model: onnx.ModelProto, random: Random) -> None:
    """Nodes before what they read."""
    nodes = list(model.graph.node)
    random.shuffle(nodes)
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def _initializer(model: onnx.ModelProto, random: Random) -> onnx.TensorProto:
    tensors = model.graph.initializer
    return random.choice(list(tensors)) if tensors else tensors.add(name="x", dims=[1], data_type=1)


def _node_of(model: onnx.ModelProto, random: Random) -> onnx.NodeProto:
    nodes = model.graph.node
    return random.choice(list(nodes)) if nodes else nodes.add(op_type="Add")


def _of(change: Callable[[onnx.ModelProto, Random], None]) -> Mutation:
    """Of a whole model, as of the bytes that hold it."""

    def mutation(data: bytes, random: Random) -> bytes:
        model = onnx.load_model_from_string(data)
        for _ in range(random.choice((1, 1, 1, 3))):
            with suppress(ValueError):  # what protobuf itself cannot hold
                change(model, random)
        return bytes(model.SerializeToString())

    return mutation


def deep_messages(data: bytes, random: Random) -> bytes:
    """Messages within messages, deeper than a parser may follow: graph → node → attribute → graph …"""
    inner = b""
    for _ in range(random.choice((50, 300, 3000))):
        for field in (6, 5, 1):  # AttributeProto.g, NodeProto.attribute, GraphProto.node
            inner = bytes([field << 3 | 2]) + _varint(len(inner)) + inner
    return data + b"\x3a" + _varint(len(inner)) + inner


def _varint(number: int) -> bytes:
    encoded = bytearray()
    while number > 127:
        encoded.append(number & 127 | 128)
        number >>= 7
    return bytes([*encoded, number])


def other_message(data: bytes, random: Random) -> bytes:
    """Protobuf, and no model; or a model with nothing in it."""
    tensor = helper.make_tensor("t", TensorProto.FLOAT, [1], [1.0]).SerializeToString()
    empty = onnx.ModelProto(ir_version=8).SerializeToString()
    return random.choice((tensor, b"\x08\x07", b"\x3a\x00", empty, data * 2))


CHANGES: dict[str, Callable[[onnx.ModelProto, Random], Any]] = {
    "external": _external, "tensor": _tensor, "node": _node, "attribute": _attribute, "nested": _nested,
    "value": _value, "model": _model, "order": _order,
}  # fmt: skip
GRAPHS: dict[str, Mutation] = {
    **{name: _of(change) for name, change in CHANGES.items()},
    "deep messages": deep_messages, "other message": other_message,
}  # fmt: skip

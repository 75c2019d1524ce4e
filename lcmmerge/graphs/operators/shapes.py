"""Operators that move values about: shapes, axes, pieces, and places looked up."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import onnx_ir as ir
import torch
from torch.fx import Node

from lcmmerge.graphs.operators.base import OPERATORS, Values, lowers

if TYPE_CHECKING:
    from lcmmerge.graphs.building import Builder


@lowers("view.default", "reshape.default")
def reshape(graph: Builder, node: Node, x: Node, shape: Sequence[int | Node]) -> Values:
    """ONNX's Reshape copies a size that is given as 0, and infers one that is given as -1."""
    sizes = [0 if _same(size, x, axis) else size for axis, size in enumerate(shape)]
    unknown = [axis for axis, size in enumerate(sizes) if not isinstance(size, int)]
    if unknown and -1 not in sizes:
        sizes[unknown[-1]] = -1
    return graph.add("Reshape", graph.value(x), graph.shape(sizes))


@lowers("flatten.using_ints")
def flatten(graph: Builder, node: Node, x: Node, start: int = 0, end: int = -1) -> Values:
    rank = x.meta["val"].ndim
    return _reshaped(graph, x, start % rank, [-1], end % rank + 1)


@lowers("unflatten.int")
def unflatten(graph: Builder, node: Node, x: Node, axis: int, sizes: Sequence[int | Node]) -> Values:
    axis %= x.meta["val"].ndim
    return _reshaped(graph, x, axis, sizes, axis + 1)


def _reshaped(graph: Builder, x: Node, start: int, sizes: Sequence[int | Node], end: int) -> ir.Value:
    """``x`` with its axes from ``start`` to ``end`` in other ``sizes``."""
    value, shape = graph.value(x), x.meta["val"].shape
    pieces = [graph.shape([*[0] * start, *sizes])]
    if all(isinstance(size, int) for size in shape[end:]):
        pieces = [graph.shape([*[0] * start, *sizes, *shape[end:]])]
    else:
        pieces.append(graph.add("Shape", value, start=end))
    return graph.add("Reshape", value, pieces[0] if len(pieces) == 1 else graph.add("Concat", *pieces, axis=0))


def _same(size: int | Node, x: Node, axis: int) -> bool:
    """Whether a size that is free is that of ``x`` along ``axis``."""
    shape = x.meta["val"].shape
    if not isinstance(size, Node) or axis >= len(shape) or not isinstance(shape[axis], torch.SymInt):
        return False
    return bool(shape[axis].node.expr == size.meta["val"].node.expr)


@lowers("expand.default")
def expand(graph: Builder, node: Node, x: Node, shape: Sequence[int | Node]) -> Values:
    return graph.add("Expand", graph.value(x), graph.shape([1 if size == -1 else size for size in shape]))


def transpose(graph: Builder, value: ir.Value, order: Sequence[int]) -> ir.Value:
    """Transpositions one after another are one."""
    before = value.producer()
    if before is not None and before.op_type == "Transpose":
        first = before.attributes["perm"].as_ints()
        value, order = before.inputs[0], [first[axis] for axis in order]  # type: ignore[assignment]
    return value if list(order) == sorted(order) else graph.add("Transpose", value, perm=list(order))


@lowers("permute.default")
def permute(graph: Builder, node: Node, x: Node, order: Sequence[int]) -> Values:
    return transpose(graph, graph.value(x), order)


@lowers("transpose.int")
def swap(graph: Builder, node: Node, x: Node, first: int, second: int) -> Values:
    order = list(range(x.meta["val"].ndim))
    order[first], order[second] = order[second], order[first]
    return transpose(graph, graph.value(x), order)


@lowers("unsqueeze.default")
def unsqueeze(graph: Builder, node: Node, x: Node, axis: int) -> Values:
    return graph.add("Unsqueeze", graph.value(x), graph.constant([axis]))


@lowers("select.int")
def select(graph: Builder, node: Node, x: Node, axis: int, position: int | Node) -> Values:
    if isinstance(position, Node):
        raise graph.unknown(node)
    return graph.add("Gather", graph.value(x), graph.constant(position), axis=axis)


@lowers("slice.Tensor")
def slice_(
    graph: Builder, node: Node, x: Node, axis: int = 0, start: int | None = None, end: int | None = None, step: int = 1
) -> Values:
    begin, last = start or 0, 2**63 - 1 if end is None else end
    if (begin, last, step) == (0, 2**63 - 1, 1):
        return graph.value(x)
    return graph.add("Slice", graph.value(x), *(graph.size(item) for item in (begin, last, axis, step)))


@lowers("chunk.default")
def chunk(graph: Builder, node: Node, x: Node, chunks: int, axis: int = 0) -> Values:
    chunks = len(node.meta["val"])  # fewer than asked for where there are not as many places
    return graph.add_many("Split", graph.value(x), names=[None] * chunks, axis=axis, num_outputs=chunks)


@lowers("split.Tensor", "split.sizes", "split_with_sizes.default")
def split(graph: Builder, node: Node, x: Node, sizes: int | Sequence[int], axis: int = 0) -> Values:
    sizes = [part.shape[axis] for part in node.meta["val"]]
    if not all(isinstance(size, int) for size in sizes):
        raise graph.unknown(node)
    return graph.add_many("Split", graph.value(x), graph.constant(sizes), names=[None] * len(sizes), axis=axis)


@lowers("cat.default", "concat.default")
def cat(graph: Builder, node: Node, parts: Sequence[Node], axis: int = 0) -> Values:
    dtype = node.meta["val"].dtype
    return graph.add("Concat", *(graph.value(part, dtype) for part in parts), axis=axis)


@lowers("pad.default")
def pad(graph: Builder, node: Node, x: Node, pads: Sequence[int], mode: str = "constant", fill: float = 0) -> Values:
    """torch's pads are pairs from the last axis on; ONNX's are all begins, then all ends."""
    if mode != "constant":
        raise graph.unknown(node)
    free = [0] * (x.meta["val"].ndim - len(pads) // 2)
    begins, ends = pads[::2][::-1], pads[1::2][::-1]
    value = graph.constant(fill or 0.0, node.meta["val"].dtype)
    return graph.add("Pad", graph.value(x), graph.constant([*free, *begins, *free, *ends]), value)


@lowers("arange.default")
def arange(graph: Builder, node: Node, end: Node, **_: Any) -> Values:
    """A size's worth of numbers; one whose end is a number is a constant."""
    scalar = graph.add("Reshape", graph.size(end), graph.constant(torch.empty(0)))
    return graph.add("Range", graph.constant(0), scalar, graph.constant(1))


@lowers("argmax.default")
def argmax(graph: Builder, node: Node, x: Node, axis: int, keep: bool = False) -> Values:
    """Of whole numbers as of float32, which holds token ids: ONNX Runtime's CUDA provider has it for floats alone."""
    dtype = x.meta["val"].dtype
    value = graph.value(x, dtype if dtype.is_floating_point else torch.float32)
    return graph.add("ArgMax", value, axis=axis, keepdims=int(keep))


@lowers("index.Tensor")
def index(graph: Builder, node: Node, x: Node, indices: Sequence[Node]) -> Values:
    """One element (or row) of ``x`` for each place in the index tensors, which are of the first axes and one shape."""
    if not all(isinstance(item, Node) and item.meta["val"].dtype is torch.int64 for item in indices):
        raise graph.unknown(node)
    if len({str(item.meta["val"].shape) for item in indices}) > 1:
        raise graph.unknown(node)
    columns = [graph.add("Unsqueeze", graph.value(item), graph.constant([-1])) for item in indices]
    return graph.add("GatherND", graph.value(x), graph.add("Concat", *columns, axis=-1))


def getitem(graph: Builder, node: Node, x: Node, position: int) -> Values:
    values = graph.values[x]
    assert isinstance(values, tuple)
    return values[position]


OPERATORS[str(operator.getitem)] = getitem  # Python's, not aten's

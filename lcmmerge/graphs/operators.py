"""torch's operators as ONNX's, one function each: the graph in the making, the call's node, its arguments → its value.

Names and arguments: https://docs.pytorch.org/docs/stable/torch.compiler_ir.html; ONNX's operators:
https://onnx.ai/onnx/operators.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import onnx_ir as ir
import torch
from torch.fx import Node

if TYPE_CHECKING:
    from lcmmerge.graphs.building import Builder

Values = ir.Value | tuple[ir.Value, ...]
OPERATORS: dict[str, Callable[..., Values]] = {}

# Without effect on a graph for inference.
IDENTITIES = frozenset(
    f"aten.{name}" for name in ("alias.default", "contiguous.default", "detach.default", "dropout.default")
)


def lowers(*names: str) -> Callable[[Callable[..., Values]], Callable[..., Values]]:
    def register(function: Callable[..., Values]) -> Callable[..., Values]:
        OPERATORS.update(dict.fromkeys((f"aten.{name}" for name in names), function))
        return function

    return register


@lowers("linear.default")
def linear(graph: Builder, node: Node, x: Node, weight: Node, bias: Node | None = None) -> Values:
    weights, offset = graph.value(weight), None if bias is None else graph.value(bias)
    if x.meta["val"].ndim == 2:
        return graph.add("Gemm", graph.value(x), weights, offset, transB=1)
    product = graph.add("MatMul", graph.value(x), transpose(graph, weights, (1, 0)))
    return product if offset is None else graph.add("Add", product, offset)


@lowers("conv2d.default")
def conv2d(
    graph: Builder,
    node: Node,
    x: Node,
    weight: Node,
    bias: Node | None = None,
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
    groups: int = 1,
) -> Values:
    inputs = [graph.value(item) for item in (x, weight, bias) if item is not None]
    return graph.add(
        "Conv",
        *inputs,
        kernel_shape=list(weight.meta["val"].shape[2:]),
        strides=list(stride),
        pads=[*padding, *padding],
        dilations=list(dilation),
        group=groups,
    )


@lowers("group_norm.default")
def group_norm(
    graph: Builder, node: Node, x: Node, groups: int, weight: Node, bias: Node, eps: float = 1e-5, cudnn: bool = True
) -> Values:
    """x: [b, c, …]. Before opset 21 as an InstanceNormalization of [b, groups, all the rest]."""
    value, scale, offset = graph.value(x), graph.value(weight), graph.value(bias)
    if graph.opset >= 21:
        return graph.add("GroupNormalization", value, scale, offset, num_groups=groups, epsilon=eps)
    dtype, rank = node.meta["val"].dtype, x.meta["val"].ndim
    ones, zeros = graph.constant([1.0] * groups, dtype), graph.constant([0.0] * groups, dtype)
    rows = graph.add("Reshape", value, graph.constant([0, groups, -1]))
    normal = graph.add("InstanceNormalization", rows, ones, zeros, epsilon=eps)
    normal = graph.add("Reshape", normal, graph.add("Shape", value))
    along = graph.constant([-1] + [1] * (rank - 2))
    scaled = graph.add("Mul", normal, graph.add("Reshape", scale, along))
    return graph.add("Add", scaled, graph.add("Reshape", offset, along))


@lowers("layer_norm.default")
def layer_norm(
    graph: Builder, node: Node, x: Node, shape: Sequence[int], weight: Node, bias: Node, eps: float = 1e-5, *_: bool
) -> Values:
    inputs = map(graph.value, (x, weight, bias))
    return graph.add("LayerNormalization", *inputs, axis=-len(shape), epsilon=eps)


@lowers("scaled_dot_product_attention.default")
def attention(
    graph: Builder,
    node: Node,
    query: Node,
    key: Node,
    value: Node,
    mask: Node | None = None,
    dropout: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Values:
    """query: [b, heads, q, d], key and value: [b, heads, k, d], mask: bool [b or 1, 1, q, k], constant.

    Attention is of opset 23. Before that: softmax(q·s kᵀ + bias) v, arXiv:1706.03762.
    """
    assert not (is_causal or dropout or enable_gqa), "no model of ours has such an attention"
    dtype, width = node.meta["val"].dtype, query.meta["val"].shape[-1]
    scale = 1 / math.sqrt(width) if scale is None else scale
    if mask is not None and str(mask.target) == "aten.expand.default":
        mask = mask.args[0]  # type: ignore[assignment]  # it is broadcast anyway
    q, k, v = map(graph.value, (query, key, value))
    if graph.opset >= 23:
        return graph.add("Attention", q, k, v, None if mask is None else graph.value(mask), scale=scale)
    q = graph.add("Mul", q, graph.constant(scale, dtype))
    scores = graph.add("MatMul", q, transpose(graph, k, (0, 1, 3, 2)))
    if mask is not None:
        bias = torch.zeros(graph.known[mask].shape, dtype=dtype)
        bias = bias.masked_fill(~graph.known[mask], torch.finfo(dtype).min)
        scores = graph.add("Add", scores, graph.constant(bias, dtype))
    return graph.add("MatMul", graph.add("Softmax", scores, axis=-1), v)


@lowers("silu.default")
def silu(graph: Builder, node: Node, x: Node) -> Values:
    return graph.add("Mul", graph.value(x), graph.add("Sigmoid", graph.value(x)))


@lowers("gelu.default")
def gelu(graph: Builder, node: Node, x: Node, *, approximate: str = "none") -> Values:
    """Before opset 20 by its definition, x/2 · (1 + erf(x/√2)), arXiv:1606.08415."""
    assert approximate == "none", "no model of ours has an approximate GELU"
    value, dtype = graph.value(x), node.meta["val"].dtype
    if graph.opset >= 20:
        return graph.add("Gelu", value)
    erf = graph.add("Erf", graph.add("Mul", value, graph.constant(math.sqrt(0.5), dtype)))
    half = graph.add("Mul", value, graph.constant(0.5, dtype))
    return graph.add("Mul", half, graph.add("Add", erf, graph.constant(1.0, dtype)))


def unary(name: str) -> Callable[..., Values]:
    return lambda graph, node, x: graph.add(name, graph.value(x))


for _name in ("cos", "erf", "exp", "neg", "sigmoid", "sin", "sqrt", "tanh"):
    lowers(f"{_name}.default")(unary(_name.capitalize()))


def binary(name: str, neutral: float | None = None) -> Callable[..., Values]:
    """An operator on tensors or numbers, in the dtype that torch promotes them to."""

    def lower(graph: Builder, node: Node, left: Node, right: Node | float) -> Values:
        if isinstance(right, int | float) and right == neutral:
            return graph.value(left, node.meta["val"].dtype)
        dtype = node.meta["val"].dtype
        if dtype is torch.bool:  # a comparison: its operands' own
            dtype = left.meta["val"].dtype
        return graph.add(name, graph.value(left, dtype), graph.value(right, dtype))

    return lower


lowers("add.Tensor")(binary("Add", 0))
lowers("sub.Tensor")(binary("Sub", 0))
lowers("mul.Tensor")(binary("Mul", 1))
lowers("div.Tensor")(binary("Div", 1))
lowers("eq.Scalar", "eq.Tensor")(binary("Equal"))


@lowers("to.dtype", "to.dtype_layout", "to.device")
def cast(graph: Builder, node: Node, x: Node, *_: Any, **__: Any) -> Values:
    return graph.value(x, node.meta["val"].dtype)


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
    shape = x.meta["val"].shape
    rest = shape[end % len(shape) + 1 :]
    return graph.add("Reshape", graph.value(x), graph.constant([*[0] * start, -1, *rest]))


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


@lowers("slice.Tensor")
def slice_(
    graph: Builder, node: Node, x: Node, axis: int = 0, start: int | None = None, end: int | None = None, step: int = 1
) -> Values:
    begin, last = start or 0, 2**63 - 1 if end is None else end
    if (begin, last, step) == (0, 2**63 - 1, 1):
        return graph.value(x)
    return graph.add("Slice", graph.value(x), *(graph.constant([item]) for item in (begin, last, axis, step)))


@lowers("chunk.default")
def chunk(graph: Builder, node: Node, x: Node, chunks: int, axis: int = 0) -> Values:
    return graph.add_many("Split", graph.value(x), names=[None] * chunks, axis=axis, num_outputs=chunks)


@lowers("cat.default", "concat.default")
def cat(graph: Builder, node: Node, parts: Sequence[Node], axis: int = 0) -> Values:
    dtype = node.meta["val"].dtype
    return graph.add("Concat", *(graph.value(part, dtype) for part in parts), axis=axis)


@lowers("pad.default")
def pad(graph: Builder, node: Node, x: Node, pads: Sequence[int], mode: str = "constant", fill: float = 0) -> Values:
    """torch's pads are pairs from the last axis on; ONNX's are all begins, then all ends."""
    assert mode == "constant", "no model of ours pads otherwise"
    free = [0] * (x.meta["val"].ndim - len(pads) // 2)
    begins, ends = pads[::2][::-1], pads[1::2][::-1]
    value = graph.constant(fill or 0.0, node.meta["val"].dtype)
    return graph.add("Pad", graph.value(x), graph.constant([*free, *begins, *free, *ends]), value)


@lowers("upsample_nearest2d.vec")
def upsample(
    graph: Builder, node: Node, x: Node, size: Sequence[int | Node] | None, factors: Sequence[float] | None = None
) -> Values:
    value, scales, sizes = graph.value(x), None, None
    if size is None:
        assert factors is not None
        scales = graph.constant([1.0, 1.0, *factors], torch.float32)
    else:
        sizes = graph.add("Concat", graph.add("Shape", value, start=0, end=2), graph.shape(size), axis=0)
    return graph.add(
        "Resize",
        value,
        None,
        scales,
        sizes,
        mode="nearest",
        coordinate_transformation_mode="asymmetric",
        nearest_mode="floor",
    )


@lowers("embedding.default")
def embedding(graph: Builder, node: Node, weight: Node, indices: Node, *_: Any) -> Values:
    return graph.add("Gather", graph.value(weight), graph.value(indices))


@lowers("arange.default")
def arange(graph: Builder, node: Node, end: Node, **_: Any) -> Values:
    """A size's worth of numbers; one whose end is a number is a constant."""
    scalar = graph.add("Reshape", graph.size(end), graph.constant(torch.empty(0)))
    return graph.add("Range", graph.constant(0), scalar, graph.constant(1))


@lowers("argmax.default")
def argmax(graph: Builder, node: Node, x: Node, axis: int, keep: bool = False) -> Values:
    return graph.add("ArgMax", graph.value(x), axis=axis, keepdims=int(keep))


@lowers("index.Tensor")
def index(graph: Builder, node: Node, x: Node, indices: Sequence[Node]) -> Values:
    """One element (or row) of ``x`` for each place in the index vectors, which are of the first axes."""
    columns = [graph.add("Unsqueeze", graph.value(item), graph.constant([1])) for item in indices]
    return graph.add("GatherND", graph.value(x), graph.add("Concat", *columns, axis=1))


@lowers("getitem")
def getitem(graph: Builder, node: Node, x: Node, position: int) -> Values:
    values = graph.values[x]
    assert isinstance(values, tuple)
    return values[position]


OPERATORS[str(operator.getitem)] = OPERATORS.pop("aten.getitem")

"""Layers with parameters, attention, and the upsampling between a U-Net's levels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch.fx import Node

from lcmmerge.graphs.building import DTYPES
from lcmmerge.graphs.operators.base import Values, lowers
from lcmmerge.graphs.operators.shapes import transpose

if TYPE_CHECKING:
    from lcmmerge.graphs.building import Builder


LAYER_NORM = 22  # the opset from which rows are normalised by LayerNormalization


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
    graph: Builder, node: Node, x: Node, groups: int, weight: Node | None = None, bias: Node | None = None,
    eps: float = 1e-5, cudnn: bool = True,
) -> Values:
    """x: [b, c, …]. TensorRT has a kernel of GroupNormalization, ONNX Runtime's CUDA provider in no version.

    Else each row of [b, groups, all the rest] is normalised: by InstanceNormalization, of which that provider lacks the
    version of opset 22, and from there on by LayerNormalization.
    """
    if weight is None or bias is None:
        raise graph.unknown(node)
    value, scale, offset = graph.value(x), graph.value(weight), graph.value(bias)
    if graph.grouped:
        return graph.add("GroupNormalization", value, scale, offset, num_groups=groups, epsilon=eps)
    dtype, rank = node.meta["val"].dtype, x.meta["val"].ndim
    rows = graph.add("Reshape", value, graph.constant([0, groups, -1]))
    if graph.opset >= LAYER_NORM:
        ones = graph.add("Expand", graph.constant([1.0], dtype), graph.add("Shape", rows, start=2, end=3))
        normal = graph.add("LayerNormalization", rows, ones, axis=-1, epsilon=eps)
    else:
        ones, zeros = graph.constant([1.0] * groups, dtype), graph.constant([0.0] * groups, dtype)
        normal = graph.add("InstanceNormalization", rows, ones, zeros, epsilon=eps)
    normal = graph.add("Reshape", normal, graph.add("Shape", value))
    along = graph.constant([-1] + [1] * (rank - 2))
    scaled = graph.add("Mul", normal, graph.add("Reshape", scale, along))
    return graph.add("Add", scaled, graph.add("Reshape", offset, along))


@lowers("layer_norm.default")
def layer_norm(
    graph: Builder, node: Node, x: Node, shape: Sequence[int], weight: Node | None = None, bias: Node | None = None,
    eps: float = 1e-5, *_: bool,
) -> Values:
    if weight is None or bias is None:
        raise graph.unknown(node)
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
    if is_causal or dropout or enable_gqa:
        raise graph.unknown(node)
    dtype, width = node.meta["val"].dtype, query.meta["val"].shape[-1]
    scale = 1 / math.sqrt(width) if scale is None else scale
    if mask is not None and str(mask.target) == "aten.expand.default":
        mask = mask.args[0]  # type: ignore[assignment]  # it is broadcast anyway
    added = mask is not None and mask.meta["val"].is_floating_point()
    if mask is not None and not added and mask not in graph.known:
        raise graph.unknown(node)
    q, k, v = map(graph.value, (query, key, value))
    if graph.opset >= 23:
        return graph.add("Attention", q, k, v, None if mask is None else graph.value(mask), scale=scale)
    q = graph.add("Mul", q, graph.constant(scale, dtype))
    scores = graph.add("MatMul", q, transpose(graph, k, (0, 1, 3, 2)))
    if mask is not None and added:
        scores = graph.add("Add", scores, graph.value(mask, dtype))
    elif mask is not None:
        bias = torch.zeros(graph.known[mask].shape, dtype=dtype)
        bias = bias.masked_fill(~graph.known[mask], torch.finfo(dtype).min)
        scores = graph.add("Add", scores, graph.constant(bias, dtype))
    return graph.add("MatMul", graph.add("Softmax", scores, axis=-1), v)


@lowers("upsample_nearest2d.vec")
def upsample(
    graph: Builder, node: Node, x: Node, size: Sequence[int | Node] | None, factors: Sequence[float] | None = None
) -> Values:
    dtype, scales, sizes = node.meta["val"].dtype, None, None
    # ONNX Runtime's Resize takes no bfloat16; the nearest value is exact in any type.
    value = graph.value(x, torch.float32 if dtype is torch.bfloat16 else dtype)
    if size is None:
        assert factors is not None
        scales = graph.constant([1.0, 1.0, *factors], torch.float32)
    else:
        sizes = graph.add("Concat", graph.add("Shape", value, start=0, end=2), graph.shape(size), axis=0)
    resized = graph.add(
        "Resize",
        value,
        None,
        scales,
        sizes,
        mode="nearest",
        coordinate_transformation_mode="asymmetric",
        nearest_mode="floor",
    )
    return graph.add("Cast", resized, to=DTYPES[dtype]) if dtype is torch.bfloat16 else resized


@lowers("matmul.default", "bmm.default")
def matmul(graph: Builder, node: Node, left: Node, right: Node) -> Values:
    return graph.add("MatMul", graph.value(left), graph.value(right))


@lowers("softmax.int")
def softmax(graph: Builder, node: Node, x: Node, axis: int, dtype: torch.dtype | None = None) -> Values:
    return graph.add("Softmax", graph.value(x, dtype), axis=axis)


@lowers("embedding.default")
def embedding(graph: Builder, node: Node, weight: Node, indices: Node, *_: Any) -> Values:
    return graph.add("Gather", graph.value(weight), graph.value(indices))

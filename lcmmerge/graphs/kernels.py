"""ONNX operators as torch functions: as many as our graphs have nodes of, and what a loop around them needs.

An operator's inputs come in its order, None where one is left out; its attributes are keywords, and one that the
function does not name is refused. ``HOST`` says which inputs are shapes and axes: they come as lists of numbers.
Definitions: https://onnx.ai/onnx/operators/.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto
from torch import Tensor
from torch.nn import functional as F

Ints = Sequence[int]

DTYPES: Mapping[int, torch.dtype] = {
    TensorProto.FLOAT: torch.float32,
    TensorProto.FLOAT16: torch.float16,
    TensorProto.BFLOAT16: torch.bfloat16,
    TensorProto.DOUBLE: torch.float64,
    TensorProto.INT64: torch.int64,
    TensorProto.INT32: torch.int32,
    TensorProto.INT8: torch.int8,
    TensorProto.UINT8: torch.uint8,
    TensorProto.BOOL: torch.bool,
}


def dtype_of(number: int) -> torch.dtype:
    """Raises NotImplementedError for what is not in ``DTYPES``, such as strings and eight-bit floats."""
    if number not in DTYPES:
        raise NotImplementedError(f"the type {TensorProto.DataType.Name(number)}")
    return DTYPES[number]


def tensor_of(proto: TensorProto) -> Tensor:
    """A tensor whose values are in the graph itself. Raises NotImplementedError."""
    dtype, shape = dtype_of(proto.data_type), tuple(proto.dims)
    values = bytearray(onnx.numpy_helper.to_array(proto).tobytes())
    return torch.frombuffer(values, dtype=dtype).reshape(shape) if values else torch.empty(shape, dtype=dtype)


def arg_max(tensor: Tensor, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> Tensor:
    if select_last_index:
        raise NotImplementedError("select_last_index")
    return tensor.argmax(axis, bool(keepdims))


def attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None, *,
    is_causal: int = 0, scale: float | None = None, q_num_heads: int = 0, kv_num_heads: int = 0,
    softcap: float = 0.0, qk_matmul_output_mode: int = 0,
) -> Tensor:  # fmt: skip
    """[batch, heads, length, width], or [batch, length, heads × width] where the numbers of heads are given."""
    if softcap or qk_matmul_output_mode:
        raise NotImplementedError("softcap or another output")
    joined = query.dim() == 3
    if joined:
        query = query.reshape(*query.shape[:2], q_num_heads, -1).transpose(1, 2)
        key, value = (part.reshape(*part.shape[:2], kv_num_heads, -1).transpose(1, 2) for part in (key, value))
    found = F.scaled_dot_product_attention(query, key, value, mask, is_causal=bool(is_causal), scale=scale)
    return found.transpose(1, 2).flatten(2) if joined else found


def cast(tensor: Tensor, *, to: int = 0, saturate: int = 1) -> Tensor:
    return tensor.to(dtype_of(to))


def clip(tensor: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    return tensor if low is None and high is None else torch.clamp(tensor, low, high)


def concat(*tensors: Tensor, axis: int = 0) -> Tensor:
    return torch.cat(tensors, axis)


def constant(*, value: TensorProto | None = None, value_int: int = 0, value_ints: Ints | None = None) -> Tensor:
    return torch.tensor(value_int if value_ints is None else value_ints) if value is None else tensor_of(value)


def constant_of_shape(shape: Ints, *, value: TensorProto | None = None) -> Tensor:
    return torch.zeros(tuple(shape)) if value is None else tensor_of(value).expand(tuple(shape)).clone()


def conv(
    tensor: Tensor, weight: Tensor, bias: Tensor | None = None, *,
    auto_pad: str = "NOTSET", dilations: Ints = (1, 1), group: int = 1, kernel_shape: Ints = (),
    pads: Ints = (0, 0, 0, 0), strides: Ints = (1, 1),
) -> Tensor:  # fmt: skip
    """``pads``: top, left, bottom, right."""
    if auto_pad != "NOTSET":
        raise NotImplementedError("auto_pad")
    top, left, bottom, right = pads
    if (top, left) != (bottom, right):
        tensor, top, left = F.pad(tensor, (left, right, top, bottom)), 0, 0
    return F.conv2d(tensor, weight, bias, tuple(strides), (top, left), tuple(dilations), group)


def div(a: Tensor, b: Tensor) -> Tensor:
    """Of integers, towards zero."""
    return torch.div(a, b, rounding_mode=None if a.is_floating_point() else "trunc")


def expand(tensor: Tensor, shape: Ints) -> Tensor:
    """To the shape that the two have in common: a 1 in ``shape`` leaves an axis as it is."""
    return tensor.expand(np.broadcast_shapes(tensor.shape, tuple(shape)))


def gather(tensor: Tensor, indices: Tensor, *, axis: int = 0) -> Tensor:
    axis %= tensor.dim()
    chosen = tensor.index_select(axis, torch.where(indices < 0, indices + tensor.shape[axis], indices).flatten())
    return chosen.reshape(*tensor.shape[:axis], *indices.shape, *tensor.shape[axis + 1 :])


def gather_nd(tensor: Tensor, indices: Tensor, *, batch_dims: int = 0) -> Tensor:
    if batch_dims:
        raise NotImplementedError("batch_dims")
    return tensor[indices.unbind(-1)]


def gelu(tensor: Tensor, *, approximate: str = "none") -> Tensor:
    return F.gelu(tensor, approximate=approximate)


def gemm(
    a: Tensor, b: Tensor, c: Tensor | None = None, *,
    alpha: float = 1.0, beta: float = 1.0, transA: int = 0, transB: int = 0,
) -> Tensor:  # fmt: skip
    a, b = a.T if transA else a, b.T if transB else b
    return alpha * (a @ b) if c is None else torch.addmm(c, a, b, alpha=alpha, beta=beta)


def group_normalization(
    tensor: Tensor, scale: Tensor, bias: Tensor, *, epsilon: float = 1e-5, num_groups: int = 1, stash_type: int = 1
) -> Tensor:
    """Opset 21's: scale and bias by channel."""
    return F.group_norm(tensor, num_groups, scale, bias, epsilon)


def instance_normalization(tensor: Tensor, scale: Tensor, bias: Tensor, *, epsilon: float = 1e-5) -> Tensor:
    return F.instance_norm(tensor, weight=scale, bias=bias, eps=epsilon)


def largest(*tensors: Tensor) -> Tensor:
    return reduce(torch.maximum, tensors)


def layer_normalization(
    tensor: Tensor, scale: Tensor, bias: Tensor | None = None, *,
    axis: int = -1, epsilon: float = 1e-5, stash_type: int = 1,
) -> Tensor:  # fmt: skip
    return F.layer_norm(tensor, tensor.shape[axis:], scale, bias, epsilon)


def least(*tensors: Tensor) -> Tensor:
    return reduce(torch.minimum, tensors)


def pad(
    tensor: Tensor, pads: Ints, value: Tensor | None = None, axes: Ints | None = None, *, mode: str = "constant"
) -> Tensor:
    """``pads``: every axis's begin, then every axis's end. torch names the last axis first."""
    if mode != "constant" or axes is not None:
        raise NotImplementedError("a mode, or axes")
    count = tensor.dim()
    both = [number for axis in reversed(range(count)) for number in (pads[axis], pads[count + axis])]
    return F.pad(tensor, both, value=0.0 if value is None else float(value))


def reduce_mean(tensor: Tensor, axes: Ints | None = None, *, keepdims: int = 1) -> Tensor:
    return tensor.mean(list(axes) if axes is not None else None, keepdim=bool(keepdims))


def reshape(tensor: Tensor, shape: Ints, *, allowzero: int = 0) -> Tensor:
    """A 0 keeps the axis, unless ``allowzero``."""
    return tensor.reshape([tensor.shape[i] if size == 0 and not allowzero else size for i, size in enumerate(shape)])


def resize(
    tensor: Tensor, roi: Tensor | None = None, scales: Sequence[float] | None = None, sizes: Ints | None = None, *,
    mode: str = "nearest", nearest_mode: str = "round_prefer_floor",
    coordinate_transformation_mode: str = "half_pixel", antialias: int = 0, cubic_coeff_a: float = -0.75,
    exclude_outside: int = 0, extrapolation_value: float = 0.0, keep_aspect_ratio_policy: str = "stretch",
) -> Tensor:  # fmt: skip
    """The nearest to the left and above, as torch's own upsampling is."""
    if (mode, nearest_mode, coordinate_transformation_mode) != ("nearest", "floor", "asymmetric"):
        raise NotImplementedError(f"{mode}, {nearest_mode}, {coordinate_transformation_mode}")
    if sizes is None:
        assert scales is not None
        sizes = [int(size * scale) for size, scale in zip(tensor.shape, scales, strict=True)]
    return F.interpolate(tensor, size=tuple(sizes[2:]), mode="nearest")


def shape_of(tensor: Tensor, *, start: int = 0, end: int | None = None) -> Tensor:
    return torch.tensor(tensor.shape[start:end], dtype=torch.int64)


def slice_of(
    tensor: Tensor, starts: Ints, ends: Ints, axes: Ints | None = None, steps: Ints | None = None
) -> Tensor:
    """What lies beyond an axis is cut: "to the end" is written as 2⁶³ - 1."""
    ranges = zip(axes or range(len(starts)), starts, ends, steps or [1] * len(starts), strict=True)
    where = [slice(None)] * tensor.dim()
    for axis, start, end, step in ranges:
        if step < 1:
            raise NotImplementedError("a step backwards")
        size = tensor.shape[axis]
        first, last = (min(max(place, -size - 1), size) for place in (start, end))
        where[axis] = slice(first, last, step)
    return tensor[tuple(where)]


def softmax(tensor: Tensor, *, axis: int = -1) -> Tensor:
    return tensor.softmax(axis)


def split(tensor: Tensor, sizes: Ints | None = None, *, axis: int = 0, num_outputs: int = 0) -> tuple[Tensor, ...]:
    if sizes is None:
        return tuple(tensor.chunk(num_outputs, axis))
    return tuple(torch.split_with_sizes(tensor, list(sizes), axis))


def squeeze(tensor: Tensor, axes: Ints | None = None) -> Tensor:
    return tensor.squeeze() if axes is None else tensor.squeeze(tuple(axes))


def transpose(tensor: Tensor, *, perm: Ints = ()) -> Tensor:
    return tensor.permute(*(perm or range(tensor.dim())[::-1]))


def unsqueeze(tensor: Tensor, axes: Ints) -> Tensor:
    rank = tensor.dim() + len(axes)
    for axis in sorted(axis % rank for axis in axes):
        tensor = tensor.unsqueeze(axis)
    return tensor


def widened(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """As the function does it, but for float16: that is computed in float32, and rounded once."""

    def call(*inputs: Tensor | None, **attributes: Any) -> Tensor:
        if inputs[0] is None or inputs[0].dtype is not torch.float16:
            return function(*inputs, **attributes)
        return function(*(item if item is None else item.float() for item in inputs), **attributes).half()

    return call


KERNELS: Mapping[str, Callable[..., Any]] = {
    "Abs": torch.abs, "Add": torch.add, "And": torch.logical_and, "ArgMax": arg_max, "Attention": attention,
    "Cast": cast, "CastLike": lambda tensor, like: tensor.to(like.dtype), "Ceil": torch.ceil, "Clip": clip,
    "Concat": concat, "Constant": constant, "ConstantOfShape": constant_of_shape, "Conv": conv, "Cos": torch.cos,
    "Div": div, "Einsum": lambda *tensors, equation="": torch.einsum(equation, *tensors),
    "Equal": torch.eq, "Erf": torch.erf, "Exp": torch.exp, "Expand": expand, "Floor": torch.floor,
    "Gather": gather, "GatherND": gather_nd, "Gelu": gelu, "Gemm": gemm, "Greater": torch.gt,
    "GreaterOrEqual": torch.ge, "GroupNormalization": group_normalization, "Identity": lambda tensor: tensor,
    "InstanceNormalization": instance_normalization, "IsNaN": torch.isnan, "LayerNormalization": layer_normalization,
    "Less": torch.lt, "LessOrEqual": torch.le, "Log": torch.log, "MatMul": torch.matmul, "Max": largest, "Min": least,
    "Mul": torch.mul, "Neg": torch.neg, "Not": torch.logical_not, "Or": torch.logical_or, "Pad": pad,
    "Pow": torch.pow, "Range": lambda start, end, step: torch.arange(start, end, step),
    "Reciprocal": torch.reciprocal, "ReduceMean": reduce_mean, "Relu": torch.relu, "Reshape": reshape, "Resize": resize,
    "Round": torch.round, "Shape": shape_of, "Sigmoid": torch.sigmoid, "Sin": torch.sin, "Slice": slice_of,
    "Softmax": softmax, "Split": split, "Sqrt": torch.sqrt, "Squeeze": squeeze, "Sub": torch.sub,
    "Tanh": torch.tanh, "Tile": lambda tensor, repeats: tensor.repeat(*repeats), "Transpose": transpose,
    "Unsqueeze": unsqueeze, "Where": torch.where,
}  # fmt: skip

HOST: Mapping[str, Ints] = {
    "ConstantOfShape": (0,), "Expand": (1,), "Pad": (1, 3), "Range": (0, 1, 2), "ReduceMean": (1,), "Reshape": (1,),
    "Resize": (2, 3), "Slice": (1, 2, 3, 4), "Split": (1,), "Squeeze": (1,), "Tile": (1,), "Unsqueeze": (1,),
}  # fmt: skip

# For a CPU that does not compute in float16. torch has its convolutions there in name alone, 127 times slower than
# float32's, and products of matrices 4 times (2.13, an AVX-512 CPU without its FP16).
WIDENED: Mapping[Callable[..., Any], Callable[..., Any]] = {
    KERNELS[name]: widened(KERNELS[name]) for name in ("Conv", "Gemm", "MatMul")
}

"""Initializers whose values are in the graph itself."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir


class Constants:
    """Those of one graph, shared between the nodes that want the same; bfloat16 is ``ml_dtypes``'."""

    def __init__(self) -> None:
        self._values: dict[tuple[Any, ...], ir.Value] = {}

    def __call__(self, array: np.ndarray[Any, Any]) -> ir.Value:
        dtype = ir.DataType.from_numpy(array.dtype)
        key = (dtype, array.shape, array.tobytes())
        if key not in self._values:
            name = f"constant_{len(self._values)}"
            value = ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(dtype))
            value.const_value = ir.Tensor(array, dtype=dtype, shape=value.shape, name=name)
            self._values[key] = value
        return self._values[key]

    def values(self) -> tuple[ir.Value, ...]:
        return tuple(self._values.values())

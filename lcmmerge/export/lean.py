"""The interpreter on a CPU that does not compute in float16: weights stay so, and are widened a node at a time.

torch has such convolutions there in name alone, 127 times slower than float32's, and products of matrices 4 times
(2.13, an AVX-512 CPU without its FP16).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lcmmerge.graphs.interpret import Interpreter
from lcmmerge.graphs.kernels import KERNELS

HEAVY = tuple(KERNELS[name] for name in ("Conv", "Gemm", "MatMul"))


class LeanInterpreter(Interpreter):
    """``Interpreter`` on the CPU, its products in float32 and rounded to float16. Raises as it does."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, "cpu")
        self._steps = tuple(
            replace(step, function=widened(step.function)) if step.function in HEAVY else step for step in self._steps
        )


def widened(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """As the function does it, but for float16: that is computed in float32, and rounded once."""

    def call(*inputs: Tensor | None, **attributes: Any) -> Tensor:
        if inputs[0] is None or inputs[0].dtype is not torch.float16:
            return function(*inputs, **attributes)
        return function(*(item if item is None else item.float() for item in inputs), **attributes).half()

    return call

"""The table of torch's operators, which the modules beside it fill as they are imported."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

Values = ir.Value | tuple[ir.Value, ...]
OPERATORS: dict[str, Callable[..., Values]] = {}

# Without effect on a graph for inference. What a tensor in the code begins with, ``detach_``, writes no number.
IDENTITIES = frozenset(
    f"aten.{name}.default" for name in ("alias", "contiguous", "detach", "detach_", "dropout", "lift_fresh_copy")
)


def lowers(*names: str) -> Callable[[Callable[..., Values]], Callable[..., Values]]:
    """The decorated function lowers ``aten``'s operators of these names."""

    def register(function: Callable[..., Values]) -> Callable[..., Values]:
        OPERATORS.update(dict.fromkeys((f"aten.{name}" for name in names), function))
        return function

    return register

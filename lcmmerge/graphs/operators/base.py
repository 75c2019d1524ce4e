"""The table of torch's operators, which the modules beside it fill as they are imported."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

Values = ir.Value | tuple[ir.Value, ...]
OPERATORS: dict[str, Callable[..., Values]] = {}

# Without effect on a graph for inference.
IDENTITIES = frozenset(
    f"aten.{name}" for name in ("alias.default", "contiguous.default", "detach.default", "dropout.default")
)


def lowers(*names: str) -> Callable[[Callable[..., Values]], Callable[..., Values]]:
    """The decorated function lowers ``aten``'s operators of these names."""

    def register(function: Callable[..., Values]) -> Callable[..., Values]:
        OPERATORS.update(dict.fromkeys((f"aten.{name}" for name in names), function))
        return function

    return register

"""Adapter files and their algorithms: a module here that defines ``ADAPTER`` is the algorithm of its name."""

from __future__ import annotations

from lcmmerge.adapters.base import Adapter, Dense, Dependent, Example, Factored, Patch, Update, algorithms
from lcmmerge.adapters.grammar import AdapterFile, check_alpha, named, read_adapter
from lcmmerge.errors import FormatError

__all__ = [
    "Adapter",
    "AdapterFile",
    "Dense",
    "Dependent",
    "Example",
    "Factored",
    "Patch",
    "Update",
    "algorithm",
    "algorithms",
    "check_alpha",
    "named",
    "read_adapter",
]


def algorithm(patch: Patch) -> tuple[str, Adapter]:
    """The one algorithm that claims the patch, and its name. Raises FormatError when not exactly one does."""
    roles = frozenset(patch.roles)
    claiming = [(name, adapter) for name, adapter in algorithms().items() if adapter.claims(roles)]
    if len(claiming) != 1:
        names = " and ".join(name for name, _ in claiming)
        path = next(iter(patch.roles.values())).path
        who = f"{names} both claim" if claiming else "no adapter algorithm has"
        raise FormatError(
            f"{path}: {patch.key}: {who} the tensors {', '.join(sorted(roles))}",
            "the file is incomplete, or of an algorithm that is not supported",
        )
    return claiming[0]

"""What ``--to`` knows, one file each: files that an export holds beside its graphs, and which graphs it holds.

Third parties add their own by the entry points ``lcmmerge.targets``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import cast

from lcmmerge.errors import NotFoundError
from lcmmerge.export.manifest import ExportManifest
from lcmmerge.registry import entries


@dataclass(frozen=True, slots=True)
class Target:
    """For whom an export is written: a runtime, and the files that it wants.

    ``fused``: the dtypes in which its runtimes take Attention nodes. ``grouped``: whether they have kernels of
    GroupNormalization; others are given what comes to the same.

    ``write`` is given a folder with everything but the target's own files, and the manifest, whose ``files`` are the
    weights; it is called again after a change of λ, and so removes what has become stale. It returns what it removed.
    """

    title: str
    fused: frozenset[str]
    write: Callable[[Path, ExportManifest], tuple[str, ...]]
    grouped: bool = False


def targets() -> Mapping[str, Target]:
    found = cast("Mapping[str, Target]", entries("lcmmerge.export.targets", "TARGET"))
    return MappingProxyType(dict(found))


def named(name: str) -> Target:
    """Raises NotFoundError."""
    if name not in targets():
        raise NotFoundError(f"{name!r}: no such target of an export", f"the targets are {', '.join(targets())}")
    return targets()[name]

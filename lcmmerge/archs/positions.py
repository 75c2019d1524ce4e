"""CLIP's ``position_ids``: 0, 1, 2 …, which old single files carry along, and which merges of checkpoints damaged.

Averaged or rounded with the weights, or shifted by one, they are copied by older web UIs into whole numbers, where 41.9
is 41: words are then read at another's place. Newer programs make their own.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import isfinite

from lcmmerge.archs.base import Model
from lcmmerge.tensors import TensorInfo

NAME = "embeddings.position_ids"
MOST = 4096  # what is longer is none of CLIP's, which has 77


def position_ids(model: Model) -> Iterator[TensorInfo]:
    return (info for name, info in model.leftovers.items() if name.endswith(NAME) and info.numel <= MOST)


def broken_positions(model: Model) -> tuple[str, ...]:
    """Those that are not 0, 1, 2 … where they are read as whole numbers; none of a file that is not on this disk."""
    there = (info for info in position_ids(model) if info.path.is_file())
    return tuple(info.name for info in there if not _in_order(info))


def _in_order(info: TensorInfo) -> bool:
    return all(isfinite(value) and int(value) == place for place, value in enumerate(info.values()))


def right_positions(count: int) -> bytes:
    """As int64, little-endian."""
    return b"".join(place.to_bytes(8, "little") for place in range(count))

"""Memory that is free here, and what ONNX Runtime's CPU provider takes of it.

The provider has kernels of float16 for few operators: it widens such weights to float32 as it opens a graph, and holds
them beside what it made them of.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

MEMINFO, CGROUPS, OWN_CGROUP = Path("/proc/meminfo"), Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
# Peak ÷ bytes of the weights in float32, of Stable Diffusion 1.5 at 256 × 256 (docs/performance.md).
WORKING = 1.75


def needed_by_ort(parameters: int) -> int:
    """Bytes at its peak, for a model of so many parameters; images of more than 256 × 256 pixels want more."""
    return int(WORKING * 4 * parameters)


def available_memory() -> int | None:
    """Bytes that may still be taken here, by the machine's count and its control groups' limits; None: not told."""
    return min(_counts(), default=None)


def _counts() -> Iterator[int]:
    if (free := _field(MEMINFO, "MemAvailable:")) is not None:
        yield free * 1024
    own = re.search(r"^0::/(.*)$", _text(OWN_CGROUP) or "", re.MULTILINE)  # of version 2
    group = CGROUPS / (own[1] if own else "")
    for folder in (place for place in (group, *group.parents) if place.is_relative_to(CGROUPS)):
        limit, used = _text(folder / "memory.max"), _text(folder / "memory.current")
        if limit and used and limit.strip() != "max":
            yield max(0, int(limit) - int(used) + (_field(folder / "memory.stat", "inactive_file") or 0))


def _field(path: Path, name: str) -> int | None:
    words = (line.split() for line in (_text(path) or "").splitlines())
    return next((int(line[1]) for line in words if line[:1] == [name]), None)


def _text(path: Path) -> str | None:
    try:
        return path.read_text("utf-8")
    except OSError:
        return None

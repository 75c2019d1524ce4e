"""What the numbers were taken on. No host names, no paths."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
import sys
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from measure import measure


def describe(workdir: Path, packages: Iterable[str]) -> dict[str, object]:
    return {
        "cpu": _proc("cpuinfo", "model name"),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(int(_proc("meminfo", "MemTotal").split()[0]) / 2**20, 1),
        "filesystem": _filesystem(workdir),
        "kernel": platform.release().partition("-")[0],
        "python": platform.python_version(),
        "versions": {name: version_of(name) for name in sorted(packages)},
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }


def version_of(package: str) -> str | None:
    """The installed version, None without one. lcmmerge's is that of the tree that is measured."""
    if package == "lcmmerge":
        return measure([sys.executable, "-c", "import lcmmerge; print(lcmmerge.__version__)"]).stdout.strip()
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _proc(file: str, field: str) -> str:
    lines = Path(f"/proc/{file}").read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(field)), "unknown")


def _filesystem(folder: Path) -> str:
    return subprocess.run(["stat", "-f", "-c", "%T", folder], capture_output=True, text=True, check=True).stdout.strip()

"""Exports for tests: one of a pico, made once for all of xdist's workers; its graphs serve every export after it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from filelock import FileLock
from fusing import Files
from merging import merge_of

from lcmmerge.bake.outcome import Settings
from lcmmerge.export import parity
from lcmmerge.export.bundle import Exported, export
from lcmmerge.export.relambda import relambda
from lcmmerge.export.request import ExportRequest, prepare
from lcmmerge.merge.spec import Merge
from lcmmerge.output import Output

STRENGTHS = (0.8, 1.0)
SIZES = parity.SIZES[1:4:2]  # of the parity, which takes as long for each; the second is odd


def shared(factory: pytest.TempPathFactory) -> Path:
    """A folder of all the workers of this session."""
    base = factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


def cache_home(factory: pytest.TempPathFactory) -> Path:
    """To be XDG_CACHE_HOME: a graph is traced once in this session, and once for all with LCMMERGE_TEST_CACHE."""
    return Path(os.environ.get("LCMMERGE_TEST_CACHE") or shared(factory) / "cache-home")


def graphs(factory: pytest.TempPathFactory) -> Path:
    return cache_home(factory) / "lcmmerge" / "graphs"


def merge(files: Files, target: Path, strengths: tuple[float, float] = STRENGTHS, **fields: Any) -> Merge:
    """The style and the LCM-LoRA of a pico, into its single file."""
    return merge_of(
        str(files.base()), target, str(files.style), strengths, str(files.lcm), config_from=str(files.folder()),
        accelerator="lcm", **fields,
    )  # fmt: skip


def write(request: Merge, cache: Path, **fields: Any) -> Exported:
    asked = {"cache": cache, "fused": False, "settings": Settings(threads=1)} | fields
    return export(prepare(ExportRequest(request, **asked)), Output(quiet=True))


def exported(factory: pytest.TempPathFactory, files: Files) -> Path:
    """For TensorRT, of plain graphs in fp16, with its parity; to be left as it is. Its sources are in ``sources``."""
    folder = shared(factory) / f"export-{files.name}"
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            with patch.object(parity, "SIZES", SIZES):
                write(merge(files, folder), graphs(factory), to="tensorrt", statics=((128, 64),), parity=True)
    return folder


def rewrite_copy(folder: Path, copy: Path, strengths: Mapping[str, float], sources: Sequence[Path]) -> None:
    """Another λ for a copy of an export."""
    relambda(shutil.copytree(folder, copy), strengths, [str(source) for source in sources], Output(quiet=True))

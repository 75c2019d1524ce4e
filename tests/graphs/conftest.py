"""The export of a pico that several tests read, and what it says of itself; both to be left as they are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from exporting import exported
from fusing import Files

from lcmmerge.export.manifest import ExportManifest, read_manifest


@pytest.fixture
def folder(files: Callable[[str], Files], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported(tmp_path_factory, files("sd1"))


@pytest.fixture
def manifest(folder: Path) -> ExportManifest:
    return read_manifest(folder)

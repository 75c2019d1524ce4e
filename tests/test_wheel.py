"""The wheel holds what the checkout has, and works away from it."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parents[1]


def tracked(folder: str) -> set[str]:
    """The files of a folder of the checkout, but what Python and its tools leave there."""
    left = {"__pycache__", ".DS_Store"}
    files = (path.relative_to(ROOT) for path in (ROOT / folder).rglob("*") if path.is_file())
    return {path.as_posix() for path in files if not left & set(path.parts)}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built without a network, and unpacked as an installer does."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT]
    subprocess.run(build, check=True, capture_output=True)
    (built,) = folder.glob("*.whl")
    with zipfile.ZipFile(built) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def test_nothing_is_missing(wheel: Path) -> None:
    found = {path.relative_to(wheel).as_posix() for path in wheel.rglob("*") if path.is_file()}
    assert tracked("lcmmerge") <= found
    (data,) = wheel.glob("*.data/data")
    recipes = {path.relative_to(data / "share/lcmmerge").as_posix() for path in data.rglob("*.yaml")}
    assert recipes == {name for name in tracked("recipes") if name.endswith(".yaml")}


def test_it_runs_away_from_the_checkout(wheel: Path, tmp_path: Path) -> None:
    (recipe,) = wheel.glob("*.data/data/share/lcmmerge/recipes/digits.yaml")
    code = f"import sys; sys.path.insert(0, {str(wheel)!r}); from lcmmerge import cli; print(cli.__file__); cli.cli()"
    command = [sys.executable, "-P", "-c", code, "run", recipe, "-o", "out", "--dry-run"]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.startswith(str(wheel)) and "fuse digits" in ran.stdout

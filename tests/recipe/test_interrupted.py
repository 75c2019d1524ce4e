"""A run that is killed at any of its commits, and then run again, gives what an unbroken one gives."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import forked
import pytest
from forked import killed_at_each_rename
from fusing import Files
from recipefile import contents, recipe, run

from lcmmerge.errors import OutputError
from lcmmerge.recipe.manifest import read_manifest


@pytest.mark.e2e
@pytest.mark.parametrize("layout", ["single-file", "diffusers"])
def test_killed_and_resumed(files: Callable[[str], Files], tmp_path: Path, layout: str) -> None:
    """Every second one goes on with another λ: what it finds is its own, recorded or not."""
    sd1 = files("sd1")
    base = sd1.base() if layout == "single-file" else sd1.folder()
    path = recipe(tmp_path, sd1, more="check: {signal: {min: 1}}\n", base=base)
    sets = ((), ("lambda.lcm=0.5",))
    for number, changed in enumerate(sets):
        run(path, tmp_path / str(number), *changed)
    killed = tmp_path / "killed"
    killed.mkdir()
    calls = [(path, killed / str(number)) for number in range(100)]
    assert forked.run(killed_at_each_rename, run, calls).returncode == 0
    outs = sorted(killed.iterdir(), key=lambda out: int(out.name))
    assert len({frozenset(read_manifest(out).steps) for out in outs}) == 3  # nothing done, the weights, the card too
    assert len(outs) > 6
    for number, out in enumerate(outs):
        run(path, out, *sets[number % 2])
        assert contents(out) == contents(tmp_path / str(number % 2)), out.name
        assert not list(out.rglob("*.partial"))


def test_a_folder_that_cannot_be_written(files: Callable[[str], Files], tmp_path: Path) -> None:
    path = recipe(tmp_path, files("sd1"))
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file" / "out"):
        with pytest.raises(OutputError):
            run(path, out)


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
def test_a_file_system_that_refuses(files: Callable[[str], Files], tmp_path: Path) -> None:
    with pytest.raises(OutputError):
        run(recipe(tmp_path, files("sd1")), Path("/proc/lcmmerge"))

"""A run that is killed at any of its commits, and then run again, gives what an unbroken one gives."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from fusing import Files
from recipefile import contents, due, recipe, run

# A fork per commit: the N-th rename is never made, and nothing after it. Every output is committed by a rename.
KILLED = """
import os, signal, sys
from pathlib import Path
import torch
from lcmmerge.merge import execute
from lcmmerge.output import Output
from lcmmerge.recipe import runner
from lcmmerge.recipe.loader import load

def until(last, path, out):
    left = last
    def hook(event, arguments):
        nonlocal left
        if event == "os.rename":
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(hook)
    runner.run(load(path), runner.Asked(out), Output(quiet=True))

path, folder = Path(sys.argv[1]), Path(sys.argv[2])
for last in range(100):
    child = os.fork()
    if not child:
        until(last, path, folder / str(last))
        os._exit(0)
    if os.waitpid(child, 0)[1] == 0:
        break
"""


@pytest.mark.parametrize("layout", ["single-file", "diffusers"])
def test_killed_and_resumed(files: Callable[[str], Files], tmp_path: Path, layout: str) -> None:
    sd1 = files("sd1")
    more = "matrix: {lambda.lcm: [0.5, 1]}\ncheck: {signal: {min: 1}}\n"
    path = recipe(tmp_path, sd1, more=more, base=sd1.base() if layout == "single-file" else sd1.folder())
    unbroken = tmp_path / "unbroken"
    run(path, unbroken)
    killed = tmp_path / "killed"
    killed.mkdir()
    subprocess.run([sys.executable, "-c", KILLED, path, killed], check=True, timeout=120)
    broken = sorted(killed.iterdir(), key=lambda out: int(out.name))
    assert len(broken) > 10
    states = [tuple(due(path, out).values()) for out in broken]
    assert len(set(states)) > 4  # from nothing done to all done
    for out in broken:
        run(path, out)
        assert contents(out) == contents(unbroken), out.name
        leftovers = [found for found in out.rglob("*") if found.name.endswith(".partial")]
        assert not leftovers


def test_killed_then_changed(files: Callable[[str], Files], tmp_path: Path) -> None:
    """What a killed run wrote and did not record is this run's own, to replace."""
    path = recipe(tmp_path, files("sd1"))
    killed = tmp_path / "killed"
    killed.mkdir()
    subprocess.run([sys.executable, "-c", KILLED, path, killed], check=True, timeout=120)
    path.write_text(path.read_text().replace("0.8", "0.7"))
    run(path, tmp_path / "unbroken")
    for out in killed.iterdir():
        run(path, out)
        assert contents(out) == contents(tmp_path / "unbroken"), out.name


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_is_not_writable(files: Callable[[str], Files], tmp_path: Path) -> None:
    from lcmmerge.errors import OutputError

    out = tmp_path / "out"
    out.mkdir(mode=0o500)
    with pytest.raises(OutputError, match="may be written"):
        run(recipe(tmp_path, files("sd1")), out)


def test_a_file_in_the_place_of_the_folder(files: Callable[[str], Files], tmp_path: Path) -> None:
    from lcmmerge.errors import OutputError

    (tmp_path / "out").write_text("")
    with pytest.raises(OutputError, match="not a folder"):
        run(recipe(tmp_path, files("sd1")), tmp_path / "out")

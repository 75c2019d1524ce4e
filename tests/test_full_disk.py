"""A disk that fills up during a download: a small file system of our own, in a mount namespace of our own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from fusing import Files
from hub import Hub
from recipefile import contents, run

pytestmark = pytest.mark.e2e

NAMESPACE = ["unshare", "--map-root-user", "--mount"]
SCRIPT = """
mount -t tmpfs -o size=800k none "$HF_HOME"
"$@" > said 2> full; echo $?
find "$HF_HOME" -name '*.safetensors'; ls -d out
mount -o remount,size=64m "$HF_HOME"
"$@" > said 2> enough; echo $?
"""
RECIPE = """
version: 1
sources: {{base: {0}base.safetensors, lcm: {0}lcm.safetensors}}
fuse: {{base: base, terms: {{lcm: 1}}}}
"""


def allowed(folder: Path) -> bool:
    try:
        return not subprocess.run([*NAMESPACE, "mount", "-t", "tmpfs", "none", folder], capture_output=True).returncode
    except FileNotFoundError:
        return False


def test_a_full_disk(hub: Hub, files: Callable[[str], Files], tmp_path: Path) -> None:
    if not allowed(tmp_path):
        pytest.skip("this system lets nobody mount a file system; tests/refs/test_refs.py has a limit in its place")
    hub.add("owner/repo", {"base.safetensors": files("sd1").base(), "lcm.safetensors": files("sd1").lcm})
    (tmp_path / "r.yaml").write_text(RECIPE.format("hf://owner/repo/"))
    (tmp_path / "home").mkdir()
    command = [*NAMESPACE, "sh", "-c", SCRIPT, "sh", sys.executable, "-m", "lcmmerge", "run", "r.yaml", "-o", "out"]
    environment = hub.environment(tmp_path / "home")
    ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert ended.stdout.split() == ["1", "0"], ended.stderr  # nothing of a file that did not come whole, no output
    error, hint = (tmp_path / "full").read_text().splitlines()
    assert error.startswith("Error: base 'hf://owner/repo@")
    assert error.endswith(f"no space is left for it in {tmp_path / 'home' / 'hub'}")
    assert hint == "Hint: free some, or set HF_HOME to another disk"
    assert (tmp_path / "enough").read_text() == ""
    (tmp_path / "base.safetensors").symlink_to(files("sd1").base())
    (tmp_path / "lcm.safetensors").symlink_to(files("sd1").lcm)
    (tmp_path / "r.yaml").write_text(RECIPE.format(""))
    run(tmp_path / "r.yaml", tmp_path / "here")
    weights = "r/r.safetensors"
    assert contents(tmp_path / "out")[weights] == contents(tmp_path / "here")[weights]

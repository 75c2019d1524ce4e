"""The Dockerfiles, the Action and the workflow: by hadolint and the published schemas; its last step is run."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml
from fusing import Files
from recipefile import recipe

if TYPE_CHECKING:
    from conftest import Ran

ROOT = Path(__file__).parents[1]
GITHUB = ROOT / ".github"
SCRIPTS = Path(sysconfig.get_path("scripts"))
DOCKERFILES = sorted((GITHUB / "docker").glob("*.Dockerfile"))
ACTION = GITHUB / "actions" / "lcmmerge" / "action.yml"
SCHEMAS = {
    ACTION: "vendor.github-actions",
    **dict.fromkeys(sorted((GITHUB / "workflows").glob("*.yml")), "vendor.github-workflows"),
}


def hadolint(path: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([SCRIPTS / "hadolint", path], capture_output=True, text=True, check=False)


def validate(path: Path, schema: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", schema, path]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.stem)
def test_dockerfiles(path: Path, tmp_path: Path) -> None:
    checked = hadolint(path)
    assert checked.returncode == 0, checked.stdout
    text = path.read_text("utf-8")
    for sources in re.findall(r"^COPY (.+) \S+$", text, re.MULTILINE):
        assert all((ROOT / source).exists() for source in sources.split())
    for wrong in (text.replace("RUN ", "RUNS "), text.replace("FROM", "#"), text.replace("&&", "&& (")):
        (tmp_path / "Dockerfile").write_text(wrong)
        assert hadolint(tmp_path / "Dockerfile").returncode == 1


@pytest.mark.parametrize("path", SCHEMAS, ids=lambda path: path.stem)
def test_the_published_schemas(path: Path, tmp_path: Path) -> None:
    checked = validate(path, SCHEMAS[path])
    assert checked.returncode == 0, checked.stdout
    (tmp_path / path.name).write_text(path.read_text("utf-8").replace("steps:", "step:"))
    assert validate(tmp_path / path.name, SCHEMAS[path]).returncode == 1


def test_the_workflow_gives_what_the_action_takes() -> None:
    action = yaml.safe_load(ACTION.read_text("utf-8"))
    for path in SCHEMAS.keys() - {ACTION}:
        steps = yaml.safe_load(path.read_text("utf-8"))["jobs"]["run"]["steps"]
        (given,) = (step["with"] for step in steps if (ROOT / step["uses"]).is_dir())
        required = {name for name, entry in action["inputs"].items() if entry.get("required")}
        assert required <= given.keys() <= action["inputs"].keys()


def test_the_actions_last_step(files: Callable[[str], Files], cli: Callable[..., Ran], tmp_path: Path) -> None:
    path, out = recipe(tmp_path, files("sd1")), tmp_path / "out"
    step = yaml.safe_load(ACTION.read_text("utf-8"))["runs"]["steps"][-1]
    values = {"recipe": path.name, "output": out.name, "arguments": "--dry-run --set lambda.style=0.7"}
    given = {name: values[re.fullmatch(r"\$\{\{ inputs\.(\w+) \}\}", text)[1]] for name, text in step["env"].items()}
    environment = os.environ | given | {"PATH": f"{SCRIPTS}{os.pathsep}{os.environ['PATH']}"}

    def run() -> int:
        shell = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]]  # GitHub's `shell: bash`
        return subprocess.run(shell, cwd=tmp_path, env=environment, capture_output=True, check=False).returncode

    assert run() == 5  # there is no lock
    assert cli("lock", path).code == 0
    assert run() == 0

"""What GitHub reads, and the Dockerfiles: by published schemas and hadolint; the Action's last step is run."""

from __future__ import annotations

import configparser
import os
import re
import subprocess
import sys
import sysconfig
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from fusing import Files
from recipefile import recipe

from lcmmerge.version import __version__

if TYPE_CHECKING:
    from conftest import Ran

ROOT = Path(__file__).parents[1]
GITHUB = ROOT / ".github"
SCRIPTS = Path(sysconfig.get_path("scripts"))
DOCKERFILES = sorted((GITHUB / "docker").glob("*.Dockerfile"))
ACTION = GITHUB / "actions" / "lcmmerge" / "action.yml"
RECIPE, RELEASE, TESTS, WHEEL = WORKFLOWS = sorted((GITHUB / "workflows").glob("*.yml"))
CONFIG, *FORMS = sorted((GITHUB / "ISSUE_TEMPLATE").glob("*.yml"), key=lambda path: path.name != "config.yml")
CITATION, DEPENDABOT = ROOT / "CITATION.cff", GITHUB / "dependabot.yml"
SCHEMAS = {  # and a word without which the file is wrong
    ACTION: ("vendor.github-actions", "steps:"),
    **dict.fromkeys(WORKFLOWS, ("vendor.github-workflows", "runs-on:")),
    **dict.fromkeys(FORMS, ("vendor.github-issue-forms", "attributes:")),
    CONFIG: ("vendor.github-issue-config", "about:"),
    DEPENDABOT: ("vendor.dependabot", "interval:"),
    CITATION: ("vendor.citation-file-format", "authors:"),
}
VENV = ".venv/bin/"
LINT = f"{VENV}ruff check . && {VENV}mypy && {VENV}lint-imports"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]


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


def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text("utf-8"))


def steps_of(path: Path) -> list[dict[str, Any]]:
    return [step for job in read(path)["jobs"].values() for step in job.get("steps", ())]


def commands(text: str) -> list[str]:
    """Without comments."""
    return [line.partition("  #")[0].rstrip() for line in text.splitlines()]


@pytest.mark.e2e
@pytest.mark.parametrize("path", SCHEMAS, ids=lambda path: path.name)
def test_the_published_schemas(path: Path, tmp_path: Path) -> None:
    schema, word = SCHEMAS[path]
    checked = validate(path, schema)
    assert checked.returncode == 0, checked.stdout
    text = path.read_text("utf-8")
    assert word in text
    (tmp_path / path.name).write_text(text.replace(word, f"no-{word}"), "utf-8")
    assert validate(tmp_path / path.name, schema).returncode == 1


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_may_read_alone(path: Path) -> None:
    workflow = read(path)
    assert workflow["permissions"] == {"contents": "read"}
    more = {name: job["permissions"] for name, job in workflow["jobs"].items() if "permissions" in job}
    assert more == ({"publish": {"id-token": "write"}} if path == RELEASE else {})
    for step in steps_of(path):
        if (used := step.get("uses", "./")).startswith("./"):
            assert (ROOT / used).is_dir()
        else:
            assert re.fullmatch(r"actions/[\w-]+@v\d+|pypa/gh-action-pypi-publish@release/v1", used)
        # What a stranger may name (a branch, an input) is no part of a script.
        assert not re.search(r"\$\{\{ *(github|inputs)\.", step.get("run", ""))


def test_the_tests_are_those_that_readme_names() -> None:
    readme, contributing = ((ROOT / name).read_text("utf-8") for name in ("README.md", "docs/contributing.md"))
    lines = [line for block in re.findall(r"```sh\n(.*?)```", readme, re.DOTALL) for line in commands(block)]
    (named,) = (part for line in lines for part in line.split(" && ") if part.startswith(f"{VENV}pytest"))
    ran = [line for step in steps_of(TESTS) for line in commands(step.get("run", "")) if line.startswith(VENV)]
    assert ran == [named, named.replace('"not e2e"', "e2e"), LINT]
    assert LINT in contributing.splitlines()
    last = steps_of(TESTS)[-1]
    assert last["run"] == LINT and last["if"] == "success() || failure()"


def test_the_tests_run_where_it_is_said_to_run() -> None:
    (job,) = read(TESTS)["jobs"].values()
    classifiers = (text.rpartition(" ")[2] for text in PROJECT["classifiers"])
    assert job["strategy"]["matrix"]["python"] == [text for text in classifiers if re.fullmatch(r"3\.\d+", text)]
    assert [name.partition("-")[0] for name in job["strategy"]["matrix"]["os"]] == ["ubuntu", "macos"]


def test_what_is_released_is_what_was_checked() -> None:
    assert read(RELEASE)[True] == {"push": {"tags": ["v*"]}}  # YAML 1.1 reads `on` as true
    wheel, publish = (read(RELEASE)["jobs"][name] for name in ("wheel", "publish"))
    assert wheel == {"uses": f"./{WHEEL.relative_to(ROOT).as_posix()}"}
    assert publish["needs"] == "wheel" and publish["environment"]["name"] == "pypi"
    taken, published = publish["steps"]
    (made,) = (step for step in steps_of(WHEEL) if step.get("uses", "").startswith("actions/upload-artifact@"))
    assert {key: made["with"][key] for key in ("name", "path")} == taken["with"]
    assert published.keys() == {"uses"}  # no token, and dist is its default
    runs = [step.get("run", "") for step in steps_of(WHEEL)]
    assert {"python -m build", "python -m twine check --strict dist/*"} <= set(runs)


def test_a_tag_that_is_not_the_version(tmp_path: Path) -> None:
    (step,) = (step for step in steps_of(WHEEL) if "ref_type == 'tag'" in step.get("if", ""))
    (tmp_path / "dist").mkdir()
    (tmp_path / "dist" / f"{PROJECT['name']}-{__version__}.tar.gz").touch()
    for tag, code in ((f"v{__version__}", 0), ("v99.0", 1)):
        env = os.environ | {"GITHUB_REF_NAME": tag}
        assert subprocess.run(["bash", "-ec", step["run"]], cwd=tmp_path, env=env, check=False).returncode == code


def test_what_dependabot_watches() -> None:
    updates = {entry["package-ecosystem"]: entry for entry in read(DEPENDABOT)["updates"]}
    assert updates.keys() == {"pip", "github-actions", "docker"}
    assert ROOT / updates["docker"]["directory"][1:] == DOCKERFILES[0].parent
    assert ACTION.parent in [ROOT / folder[1:] for folder in updates["github-actions"]["directories"]]


def test_the_citation() -> None:
    citation = read(CITATION)
    assert (citation["title"], citation["version"]) == (PROJECT["name"], __version__)
    assert (citation["abstract"], citation["keywords"]) == (PROJECT["description"], PROJECT["keywords"])
    assert citation["license"] == PROJECT["license"]
    (paper,) = citation["references"]
    assert paper["url"] == "https://arxiv.org/abs/2311.05556" and len(paper["authors"]) == 9


def test_one_address() -> None:
    """Every link to the repository, and the file that it leads to."""
    urls = [*PROJECT["urls"].values(), *(link["url"] for link in read(CONFIG)["contact_links"])]
    home = PROJECT["urls"]["Homepage"]
    assert read(CITATION)["repository-code"] == home
    for url in urls:
        assert url == home or url.startswith(f"{home}/")
        if found := re.fullmatch(r"/(?:blob|tree)/main/(.+)", url.removeprefix(home)):
            assert (ROOT / found[1]).exists()
    for target in re.findall(r"\]\(([^)]+)\)", (ROOT / "CONTRIBUTING.md").read_text("utf-8")):
        assert (ROOT / target).exists()


def test_before_a_commit() -> None:
    """The same linters; `ruff format` would lay the code out anew."""
    (local,) = read(ROOT / ".pre-commit-config.yaml")["repos"]
    entries = [hook["entry"] for hook in local["hooks"]]
    assert local["repo"] == "local" and entries == [f"{VENV}ruff check --force-exclude", f"{VENV}mypy"]


@pytest.mark.parametrize("path", [*SCHEMAS, *DOCKERFILES, *ROOT.glob("*.md")], ids=lambda path: path.name)
def test_the_editors_rules(path: Path) -> None:
    parser = configparser.ConfigParser()
    parser.read_string("[top]\n" + (ROOT / ".editorconfig").read_text("utf-8"))
    rules = parser["*"]
    assert (parser["top"]["root"], rules["end_of_line"], rules["indent_style"]) == ("true", "lf", "space")
    text = path.read_bytes().decode(rules["charset"])
    assert text.endswith("\n") and not re.search(r"[ \t]\n|\t|\r", text)


def test_the_workflow_gives_what_the_action_takes() -> None:
    action = yaml.safe_load(ACTION.read_text("utf-8"))
    (given,) = (step["with"] for step in steps_of(RECIPE) if (ROOT / step["uses"]).is_dir())
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

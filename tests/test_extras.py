"""A plain installation merges; what needs an extra says which, in one line, before it does anything."""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Callable, Iterator
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import TYPE_CHECKING

import forked
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import lcmmerge
from lcmmerge.errors import LcmMergeError
from lcmmerge.extras import EXTRAS, check_installed

if TYPE_CHECKING:
    from conftest import Ran

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
OPTIONAL = sorted({module for extra in EXTRAS.values() for module in extra.modules})
BASE, NEON, LCM = "zoo:digits/base", "zoo:digits/neon.safetensors", "zoo:digits/lcm.safetensors"
MERGE = (BASE, NEON, "--lcm", LCM, "--accelerator", "lcm")
RECIPE = f"""
version: 1
sources: {{base: "{BASE}", style: "{NEON}", lcm: {{reference: "{LCM}", accelerator: lcm}}}}
fuse: {{base: base, terms: {{style: 0.8, lcm: 1.0}}}}
"""
SECTIONS = """
search: {grid: {style: [0.6, 1.0]}, prompts: [a one], objective: lpips}
export: {}
"""


def requirements(extra: str) -> Iterator[Requirement]:
    """On this machine, those of the extras that it builds on too."""
    for line in PROJECT["optional-dependencies"][extra]:
        requirement = Requirement(line)
        if requirement.name == "lcmmerge":
            for other in requirement.extras:
                yield from requirements(other)
        elif requirement.marker is None or requirement.marker.evaluate():
            yield requirement


@pytest.mark.parametrize("extra", EXTRAS)
def test_the_modules_are_those_of_the_packages(extra: str) -> None:
    installed = packages_distributions()
    packages = {canonicalize_name(installed.get(name, [name])[0]) for name in EXTRAS[extra].modules}
    wanted = {canonicalize_name(re.sub(r"_cu\d+", "", requirement.name)) for requirement in requirements(extra)}
    assert packages == wanted


def test_every_extra_is_described() -> None:
    assert EXTRAS.keys() == PROJECT["optional-dependencies"].keys() - {"all", "test"}


def plain(*lines: tuple[str, ...]) -> None:
    """Commands where no module of an extra can be imported."""
    sys.modules.update(dict.fromkeys(OPTIONAL))  # None is what Python takes for a module that is not there
    forked.commands(*lines)


@pytest.mark.slow("every command that needs none")
def test_merging_needs_no_extra(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    lines = (
        ("--help",),
        ("search", "--help"),
        ("accelerators",),
        ("doctor",),
        ("completion", "bash"),
        ("inspect", BASE),
        ("fuse", *MERGE, "--dry-run"),
        ("fuse", *MERGE, "-o", "fast"),
        ("verify", "fast", "--source", BASE, "--source", NEON, "--source", LCM),
        ("extract", "fast", BASE, "-o", "both.safetensors", "--rank", "4"),
        ("combine", NEON, "0.8", LCM, "1.0", "-o", "combined.safetensors"),
        ("lock", "recipe.yaml"),
        ("run", "recipe.yaml", "-o", "out", "--locked"),
        ("verify", "out"),
        ("distill", BASE, "--count-parameters"),
    )
    ended = [forked.run(plain, line, cwd=tmp_path) for line in lines[:2]]  # click ends the process after its help
    ended.append(forked.run(plain, *lines[2:], cwd=tmp_path))
    assert [(ran.returncode, ran.stderr if ran.returncode else "") for ran in ended] == [(0, "")] * 3


@pytest.mark.parametrize(
    ("extra", "arguments"),
    [
        ("draw", ("generate", BASE, "--prompt", "a one", "-o", "made")),
        ("search", ("search", *MERGE, "--prompts", "prompts.txt", "-o", "made")),
        ("train", ("distill", BASE, "--data", "data", "-o", "made")),
        ("train", ("train-style", BASE, "--data", "data", "-o", "made")),
        ("export", ("export", BASE, "-o", "made")),
        ("export", ("relambda", "export", "--lambda", "0.6", "1.0")),
        ("export", ("check", "export")),
        ("export,tensorrt-rtx", ("check", "export", "--tensorrt")),
        ("export", ("bench", "export")),
        ("export,metrics,search", ("run", "recipe.yaml", "-o", "made")),
        ("export,metrics,search", ("run", "recipe.yaml", "-o", "made", "--dry-run")),
    ],
)
def test_a_command_names_the_extra_that_it_lacks(
    extra: str, arguments: tuple[str, ...], cli: Callable[..., Ran], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.yaml").write_text(RECIPE + SECTIONS)
    for module in OPTIONAL:
        monkeypatch.setitem(sys.modules, module, None)
    ran = cli(*arguments)
    ran.assert_fault(1, "not installed here: ")
    assert f"pip install 'lcmmerge[{extra}]'" in ran.err
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.yaml"]


@pytest.mark.parametrize("doing", ["search", "export", "draw"])
def test_so_does_the_python_api(doing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    arguments = [tmp_path] if doing == "export" else [["a one"], tmp_path]
    with pytest.raises(LcmMergeError, match="not installed here: diffusers") as error:
        getattr(lcmmerge.Merge(BASE, {"style": (NEON, 1.0)}), doing)(*arguments)
    assert error.value.hint == f"pip install 'lcmmerge[{doing}]'"


def test_a_folder_of_that_name_is_no_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "optuna").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "optuna", raising=False)
    with pytest.raises(LcmMergeError, match="optuna"):
        check_installed("search")

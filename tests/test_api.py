"""The Python API: its names, its doctests, and that a call does what the command of its name does."""

import doctest
import importlib
import inspect
import json
import subprocess
import sys
from pathlib import Path

import pytest

import lcmmerge
from lcmmerge import api

FUNCTIONS = ("export", "fuse", "inspect", "plan", "run", "search")
HEAVY = {"click", "diffusers", "numpy", "onnx", "optuna", "pydantic", "rich", "torch", "transformers"}
BASE, NEON, CHALK = "zoo:digits/base", "zoo:digits/neon.safetensors", "zoo:digits/chalk.safetensors"
MERGE = {"lambdas": (0.8, 1.0), "lcm": "zoo:digits/lcm.safetensors", "accelerator": "lcm"}


def test_names():
    assert lcmmerge.__all__ == ["LcmMergeError", "__version__", *FUNCTIONS]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_room_does_not_hide_a_function(name):
    for room in ("graphs.bundle", "merge.fuse", "merge.inspection", "merge.plan", "recipe.runner", "studies.run"):
        importlib.import_module(f"lcmmerge.{room}")
    assert getattr(lcmmerge, name) is getattr(api, name)
    assert inspect.isfunction(getattr(lcmmerge, name))


def test_importing_it_loads_nothing_heavy():
    code = "import json, sys, lcmmerge; print(json.dumps(sorted(sys.modules)))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert not HEAVY & set(json.loads(loaded))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_its_doctest(name, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    (test,) = doctest.DocTestFinder(recurse=False).find(getattr(api, name), name, globs={"lcmmerge": lcmmerge})
    ran = doctest.DocTestRunner().run(test)
    assert ran.attempted and not ran.failed, capfd.readouterr().out


def test_fuse_is_the_command(tmp_path, cli, monkeypatch):
    monkeypatch.chdir(tmp_path)
    report = lcmmerge.fuse(BASE, NEON, output="called", layout="single-file", dtype="fp16", **MERGE)
    options = ["--lambda", "0.8", "1.0", "--lcm", MERGE["lcm"], "--accelerator", "lcm", "--layout", "single-file"]
    assert cli("fuse", BASE, NEON, *options, "--dtype", "fp16", "-o", "typed").code == 0
    assert Path("called.safetensors").read_bytes() == Path("typed.safetensors").read_bytes()
    assert report.as_dict()["output"] == "called.safetensors"


def test_plan_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = lcmmerge.plan(BASE, NEON, adapters=[(CHALK, 0.5)], **MERGE)
    assert [(term.name, term.strength) for term in found.terms] == [("style", 0.8), ("lcm", 1.0), ("chalk", 0.5)]
    assert not list(tmp_path.iterdir())


def test_a_refusal_is_an_error_with_the_commands_words(tmp_path, cli):
    with pytest.raises(lcmmerge.LcmMergeError) as raised:
        lcmmerge.fuse(tmp_path / "none.safetensors", output=tmp_path / "out")
    ran = cli("fuse", tmp_path / "none.safetensors", "-o", tmp_path / "out")
    assert f"Error: {raised.value.message}\nHint: {raised.value.hint}\n" == ran.err
    assert raised.value.exit_code == ran.code
    with pytest.raises(lcmmerge.LcmMergeError, match="dtype 'fp7': unknown"):
        lcmmerge.plan(BASE, NEON, dtype="fp7")


def test_a_warning_is_pythons(tmp_path, capfd):
    (tmp_path / "neon.yaml").write_text(
        "version: 1\n"
        f"sources: {{base: {BASE}, style: {NEON}, lcm: {MERGE['lcm']}, chalk: {CHALK}}}\n"
        "fuse: {base: base, terms: {style: 0.8, lcm: 1}}\n"
    )
    with pytest.warns(UserWarning, match="the source chalk is used by nothing"):
        lcmmerge.run(tmp_path / "neon.yaml", tmp_path / "out")
    assert capfd.readouterr() == ("", "")

"""The Python API: its names, its doctests, and that a call does what the command of its name does."""

import doctest
import json
import subprocess
import sys
from operator import attrgetter
from pathlib import Path

import pytest

import lcmmerge
from lcmmerge import Merge, Source, Term

HEAVY = {"click", "diffusers", "numpy", "onnx", "optuna", "pydantic", "rich", "torch", "transformers"}
BASE, NEON, CHALK = "zoo:digits/base", "zoo:digits/neon.safetensors", "zoo:digits/chalk.safetensors"
LCM = Term("lcm", Source("zoo:digits/lcm.safetensors"), accelerator="lcm")
TERMS = {"style": (NEON, 0.8), "lcm": LCM}


def test_names():
    assert lcmmerge.__all__ == ["LcmMergeError", "Merge", "Source", "Term", "__version__", "inspect"]


def test_importing_it_loads_nothing_heavy():
    code = "import json, sys, lcmmerge; print(json.dumps(sorted(sys.modules)))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert not HEAVY & set(json.loads(loaded))


DRAWN = [pytest.param(f"Merge.{name}", marks=pytest.mark.e2e) for name in ("draw", "export", "search")]


@pytest.mark.parametrize("name", ["Merge", "Merge.plan", "Merge.write", *DRAWN, "inspect"])
def test_its_doctest(name, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    documented = attrgetter(name)(lcmmerge)
    (test,) = doctest.DocTestFinder(recurse=False).find(documented, name, globs={"lcmmerge": lcmmerge})
    ran = doctest.DocTestRunner().run(test)
    assert ran.attempted and not ran.failed, capfd.readouterr().out


def test_write_is_the_command(tmp_path, cli, monkeypatch):
    monkeypatch.chdir(tmp_path)
    report = Merge(BASE, TERMS).write("called", layout="single-file", dtype="fp16")
    options = ["--lambda", "0.8", "1.0", "--accelerator", "zoo:digits/lcm.safetensors", "--accelerator", "lcm"]
    assert cli("fuse", BASE, NEON, *options, "--layout", "single-file", "--dtype", "fp16", "-o", "typed").code == 0
    assert Path("called.safetensors").read_bytes() == Path("typed.safetensors").read_bytes()
    assert report.as_dict()["output"] == "called.safetensors"


def test_plan_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = Merge(BASE, {**TERMS, "chalk": (CHALK, 0.5)}).plan()
    assert [(term.name, term.strength) for term in found.terms] == [("style", 0.8), ("lcm", 1.0), ("chalk", 0.5)]
    assert not list(tmp_path.iterdir())


def test_a_refusal_is_an_error_with_the_commands_words(tmp_path, cli):
    with pytest.raises(lcmmerge.LcmMergeError) as raised:
        Merge(tmp_path / "none.safetensors", {"lcm": 1.0}).write(tmp_path / "out")
    ran = cli("fuse", tmp_path / "none.safetensors", "-o", tmp_path / "out")
    assert f"Error: {raised.value.message}\nHint: {raised.value.hint}\n" == ran.err
    assert raised.value.exit_code == ran.code
    with pytest.raises(lcmmerge.LcmMergeError, match="dtype 'fp7': unknown"):
        Merge(BASE, TERMS).write("out", dtype="fp7")


def test_a_warning_is_pythons(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr("lcmmerge.merge.plan.Plan.doubts", ("style looks made for another architecture",))
    with pytest.warns(UserWarning, match="made for another"):
        Merge(BASE, TERMS).write(tmp_path / "out")
    assert capfd.readouterr() == ("", "")

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from forked import Child
from fusing import Files
from recipefile import contents, recipe

if TYPE_CHECKING:
    from conftest import Ran


def test_plan_run_and_again(files: Callable[[str], Files], cli: Callable[..., Ran], tmp_path: Path) -> None:
    path, out = recipe(tmp_path, files("sd1")), tmp_path / "out"
    ran = cli("run", path, "-o", out, "--dry-run")
    assert (ran.code, ran.err, out.exists()) == (0, "", False)
    assert "2 of 2 steps are to be done" in ran.out
    ran = cli("run", path, "-o", out)
    assert (ran.code, ran.err, ran.out.count("done now")) == (0, "", 2)
    ran = cli("run", path, "-o", out)
    assert (ran.code, ran.out.count("was done")) == (0, 2)
    ran = cli("run", path, "-o", out, "--dry-run", "--set", "lambda.lcm=0.9")
    assert "to do: its inputs" in " ".join(ran.out.split())
    assert "2 of 2 steps are to be done" in ran.out


def test_json(files: Callable[[str], Files], cli: Callable[..., Ran], tmp_path: Path) -> None:
    path, out = recipe(tmp_path, files("sd1")), tmp_path / "out"
    plan = json.loads(cli("run", path, "-o", out, "--dry-run", "--json").out)
    assert [(step["step"], step["done"], step["downloads"]) for step in plan["steps"]] == [
        ("fuse pico", False, 0), ("card pico", False, 0)
    ]  # fmt: skip
    assert plan["steps"][0]["reads"] > plan["steps"][0]["writes"] > 0
    assert plan["sources"].keys() == {"base", "style", "lcm"}
    manifest = json.loads(cli("run", path, "-o", out, "--json").out)
    assert manifest == json.loads((out / "run.json").read_text())


@pytest.mark.e2e
def test_the_same_bytes_everywhere(files: Callable[[str], Files], process: Callable[..., Ran], tmp_path: Path) -> None:
    """Two environments: other hashes of strings, other numbers of threads."""
    path = recipe(tmp_path, files("sd1"), more="matrix: {lambda.style: [0.5, 1]}\ncheck: {signal: {min: 1}}\n")
    assert process("lock", path).code == 0
    for number, threads in (("1", "1"), ("2", "3")):
        ran = process(
            "run", path, "-o", tmp_path / number, "--locked", "--threads", threads,
            PYTHONHASHSEED=number, OMP_NUM_THREADS=threads,
        )  # fmt: skip
        assert ran.code == 0, ran.err
    assert contents(tmp_path / "1") == contents(tmp_path / "2")
    assert len(contents(tmp_path / "1")) == 7


@pytest.mark.e2e
def test_two_runs_at_once(
    files: Callable[[str], Files], start: Callable[..., Child], tmp_path: Path
) -> None:
    path, out = recipe(tmp_path, files("sd1"), more="matrix: {lambda.style: [0.5, 1]}\n"), tmp_path / "out"
    both = [start("run", path, "-o", out) for _ in range(2)]
    ended = [child.communicate(timeout=120) for child in both]
    assert [child.returncode for child in both] == [0, 0], ended
    alone = start("run", path, "-o", tmp_path / "alone")
    alone.communicate(timeout=120)
    assert contents(out) == contents(tmp_path / "alone")


def test_exit_codes(files: Callable[[str], Files], cli: Callable[..., Ran], tmp_path: Path) -> None:
    path, out = recipe(tmp_path, files("sd1")), tmp_path / "out"
    cases: dict[str, tuple[int, tuple[object, ...]]] = {
        "did you mean 'style'?": (2, ("--set", "lambda.stlye=1")),
        "does not say where to": (2, ("--publish",)),
        "must be at least": (4, ("--set", "check.signal.min=1e9")),
        "cannot be read": (5, ("--locked",)),
    }
    for message, (code, options) in cases.items():
        ran = cli("run", path, "-o", out, *options)
        assert (ran.code, ran.out) == (code, "")
        assert message in ran.err
        assert ran.err.startswith("Error: ")
        assert ran.err.splitlines()[-1].startswith("Hint: ")
    assert cli("run", tmp_path / "nowhere.yaml", "-o", out).code == 1


def test_lock_and_verify(files: Callable[[str], Files], cli: Callable[..., Ran], tmp_path: Path) -> None:
    sd1 = files("sd1")
    path, out = recipe(tmp_path, sd1, base=sd1.folder()), tmp_path / "out"
    ran = cli("lock", path)
    assert (ran.code, ran.err) == (0, "")
    lock = json.loads((tmp_path / "pico.yaml.lock").read_text())
    assert lock["sources"] == json.loads(cli("lock", path, "--json").out)
    assert {name.split("/")[0] for name in lock["sources"]["base"]["files"]} >= {"unet", "vae", "model_index.json"}
    assert cli("run", path, "-o", out, "--locked").code == 0
    assert cli("verify", out).code == 0
    assert cli("verify", out, "--lock", tmp_path / "pico.yaml.lock").code == 0
    lock["sources"]["style"]["files"]["style.safetensors"]["sha256"] = "0" * 64
    (tmp_path / "pico.yaml.lock").write_text(json.dumps(lock))
    ran = cli("verify", out, "--lock", tmp_path / "pico.yaml.lock")
    assert (ran.code, ran.out) == (5, "")
    assert "pico: style.safetensors " in ran.err
    (out / "pico" / "README.md").write_text("changed")
    ran = cli("verify", out)
    assert (ran.code, "card pico" in ran.err) == (1, True)


def test_doubts_are_said(files: Callable[[str], Files], cli: Callable[..., Ran], tmp_path: Path) -> None:
    path, out = recipe(tmp_path, files("sd1")), tmp_path / "out"
    path.write_text(path.read_text().replace("style: 0.8, ", ""))
    assert cli("run", path, "-o", out).err == "Warning: the source style is used by nothing\n"
    ran = cli("run", path, "-o", out, "--set", "fuse.output=other")
    assert "pico is of an earlier run, and stays as it is" in ran.err
    assert (out / "pico" / "pico.safetensors").exists()

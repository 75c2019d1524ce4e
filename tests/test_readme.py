"""Every command in README runs, on pico files under the names that it uses, offline."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from pico import lcm_lora, pico, style_lora
from PIL import Image

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")
HUB = {
    "models--latent-consistency--lcm-lora-sdxl": "pytorch_lora_weights.safetensors",
    "models--ByteDance--Hyper-SD": "Hyper-SDXL-8steps-lora.safetensors",
}
RECIPE = """
version: 1
sources: {base: base.safetensors, style: style.safetensors, lcm: lcm.safetensors}
fuse: {base: base, terms: {style: 0.8, lcm: 1.0}}
"""
RUN = """
import shlex, sys
from lcmmerge.cli import cli
for line in sys.stdin.read().splitlines():
    print("$", line)
    cli.main(shlex.split(line, comments=True)[1:], standalone_mode=False)
"""


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that README names, and a Hub cache with the LoRAs that its commands name."""
    folder = tmp_path_factory.mktemp("readme")
    pico("sdxl").single_file(folder / "base.safetensors")
    pico("sdxl", seed=5).single_file(folder / "tuned.safetensors")
    pico("sdxl").folder(folder / "sdxl-folder")
    for seed, name in enumerate(("style", "detail"), 2):
        style_lora(folder / f"{name}.safetensors", "sdxl", seed=seed)
    for name in ("lcm", "tcd"):
        lcm_lora(folder / f"{name}.safetensors", "sdxl")
    (folder / "sdxl-papercut.yaml").write_text(RECIPE)
    for repository, file in HUB.items():
        snapshot = folder / "hub" / repository / "snapshots" / ("0" * 40)
        snapshot.mkdir(parents=True)
        (snapshot.parents[1] / "refs").mkdir()
        (snapshot.parents[1] / "refs" / "main").write_text("0" * 40)
        lcm_lora(snapshot / file, "sdxl")
    return folder


@pytest.fixture
def studio(tmp_path: Path) -> Path:
    """The same names for a smaller model, with prompts and photos."""
    pico("sd1").folder(tmp_path / "base")
    pico("sd1").folder(tmp_path / "fast")
    style_lora(tmp_path / "style.safetensors", "sd1")
    lcm_lora(tmp_path / "lcm.safetensors", "sd1")
    (tmp_path / "prompts.txt").write_text("a fox\na hat\n")
    (tmp_path / "photos").mkdir()
    for number in range(4):
        Image.new("RGB", (64, 64), (60 * number, 90, 120)).save(tmp_path / "photos" / f"{number}.png")
        (tmp_path / "photos" / f"{number}.txt").write_text("a square")
    return tmp_path


def run(folder: Path, *command: str, text: str = "") -> subprocess.CompletedProcess[str]:
    env = os.environ | {"HF_HOME": str(folder), "XDG_CACHE_HOME": str(folder), "HF_HUB_OFFLINE": "1"}
    result = subprocess.run(
        [sys.executable, *command], cwd=folder, env=env, input=text, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result


def test_the_main_job(tmp_path: Path) -> None:
    command = next(block for block in blocks("sh") if "digits.yaml" in block).splitlines()[1]
    command = command.removeprefix(".venv/bin/").replace("recipes/", f"{ROOT}/recipes/")
    shown = run(tmp_path, "-c", RUN, text=command).stdout
    table, found, verdict = shown.partition("search digits: λ")
    printed = [line.rstrip() for line in table.splitlines()[1:] if line.strip()]
    assert "\n".join(printed) in "\n".join(line.rstrip() for line in README.splitlines() if line.strip())
    assert found and "DPM-Solver++" in verdict  # what it says of it may differ between machines


def test_a_recipe_in_ci(folder: Path) -> None:
    commands = next(block for block in blocks("sh") if "--locked" in block)
    assert "$ lcmmerge verify out" in run(folder, "-c", RUN, text=commands).stdout


def test_your_own_files(folder: Path) -> None:
    commands = next(block for block in blocks("sh") if "--dry-run" in block)
    shown = run(folder, "-c", RUN, text=commands).stdout
    assert shown.count("$ lcmmerge") == len(commands.splitlines()) > 5


def test_drawing_searching_and_distilling(studio: Path) -> None:
    """Trainings of two steps."""
    commands = next(block for block in blocks("sh") if "train-style" in block).splitlines()
    short = " --steps 2 --batch 2 --rank 2 --resolution 64 --device cpu"
    trained = [line for line in commands if "--data" in line]
    lines = [line.partition("#")[0] + short if line in trained else line for line in commands]
    shown = run(studio, "-c", RUN, text="\n".join(lines)).stdout
    assert shown.count("$ lcmmerge") == len(commands)
    written = ("own-lcm.safetensors", "own-style.safetensors", "study/report.html", "images/0000-0.png")
    assert all((studio / name).is_file() for name in written)


def test_exporting(studio: Path) -> None:
    """Without torch.compile, which takes a minute to begin."""
    commands = next(block for block in blocks("sh") if "relambda" in block).splitlines()
    short = {"bench": " --no-compile --repeats 1 --warmup 0"}
    lines = [line.partition("#")[0] + short.get(line.split()[1], "") for line in commands]
    shown = run(studio, "-c", RUN, text="\n".join(lines)).stdout
    assert shown.count("$ lcmmerge") == len(commands)
    assert all((studio / name).is_file() for name in ("graphs/unet/model.onnx", "from-graphs/0000-0.png"))


def test_the_result_draws(folder: Path) -> None:
    command = next(line for line in README.splitlines() if "--format diffusers" in line)
    run(folder, "-c", RUN, text=f"{command} --force")
    (code,) = blocks("python")
    check = "assert image.size[0] > 8 and type(pipe.scheduler).__name__ == 'LCMScheduler'"
    run(folder, "-c", f"{code}\n{check}")

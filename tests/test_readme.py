"""Every command in README runs, on pico files under the names that it uses, offline."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import forked
import pytest
import torch
from experts import lora_of_wan, two_experts
from exporting import cache_home, exported
from families import single_file, state_of
from flux import wide
from forked import commands
from fusing import Files
from pico import lcm_lora, pico, style_lora
from PIL import Image
from safetensors.torch import save_file

from lcmmerge import inspect

pytestmark = pytest.mark.e2e

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


@pytest.fixture
def run(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """``run(folder, function, …)``: in a process with that folder, offline; what it printed."""

    def run(folder: Path, function: Callable[..., object], *arguments: object) -> str:
        cache = str(cache_home(tmp_path_factory))  # graphs that other tests made serve here, too
        env = os.environ | {"HF_HOME": str(folder), "XDG_CACHE_HOME": cache, "HF_HUB_OFFLINE": "1"}
        ended = forked.run(function, *arguments, cwd=folder, env=env)
        assert ended.returncode == 0, ended.stdout + ended.stderr
        return ended.stdout

    return run


@pytest.fixture
def lcmmerge(run: Callable[..., str]) -> Callable[..., str]:
    """``lcmmerge(folder, line, …)``: README's commands, one after another."""
    return lambda folder, *lines: run(folder, commands, *(shlex.split(line, comments=True)[1:] for line in lines))


def test_the_main_job(lcmmerge: Callable[..., str], tmp_path: Path) -> None:
    command = next(block for block in blocks("sh") if "digits.yaml" in block).split(" && .venv/bin/")[-1]
    command = command.replace("recipes/", f"{ROOT}/recipes/")
    shown = lcmmerge(tmp_path, command)
    table, found, verdict = shown.partition("search digits: λ")
    printed = [line.rstrip() for line in table.splitlines() if line.strip()]
    assert "\n".join(printed) in "\n".join(line.rstrip() for line in README.splitlines() if line.strip())
    assert found and "DPM-Solver++" in verdict  # what it says of it may differ between machines


def test_a_recipe_in_ci(lcmmerge: Callable[..., str], folder: Path) -> None:
    lines = next(block for block in blocks("sh") if "--locked" in block).splitlines()
    assert any("verify out" in line for line in lines)
    lcmmerge(folder, *lines)


def test_your_own_files(lcmmerge: Callable[..., str], folder: Path) -> None:
    lines = next(block for block in blocks("sh") if "--dry-run" in block).splitlines()
    assert len(lines) > 5
    lcmmerge(folder, *lines)


def test_diffusion_transformers(lcmmerge: Callable[..., str], tmp_path: Path) -> None:
    single_file(tmp_path / "flux1.safetensors", "flux1", state_of("flux1"))
    for name in ("flux-style", "flux-turbo"):
        module = "transformer.transformer_blocks.0.attn.to_q"
        lora = {f"{module}.lora_A.weight": torch.ones(2, 16), f"{module}.lora_B.weight": torch.ones(16, 2)}
        save_file(lora, tmp_path / f"{name}.safetensors")
    wan = two_experts(tmp_path / "wan22")
    assert wan.is_dir()
    for name in ("fast_high_noise", "fast_low_noise"):
        lora_of_wan(tmp_path / f"{name}.safetensors", "diffusion_model.", 1)
    block = next(block for block in blocks("sh") if "flux-turbo" in block)
    lcmmerge(tmp_path, *block.replace("\\\n", "").splitlines())
    assert (tmp_path / "wan22-fast" / "transformer_2").is_dir()


def test_the_file_that_people_run(lcmmerge: Callable[..., str], tmp_path: Path) -> None:
    base, lora = wide(tmp_path)
    base.rename(tmp_path / "flux1.safetensors")
    for name in ("flux-style", "flux-turbo"):
        (tmp_path / f"{name}.safetensors").write_bytes(lora.read_bytes())
    lcmmerge(tmp_path, *next(block for block in blocks("sh") if "--like" in block).splitlines())
    stored = [inspect(tmp_path / name).whole.dtypes for name in ("flux-fp8.safetensors", "like.safetensors")]
    assert stored[0] == stored[1]
    assert stored[0]["fp8_scaled"] == inspect(tmp_path / "flux-q8.gguf").whole.dtypes["gguf:q8_0"]


def test_drawing_searching_and_distilling(lcmmerge: Callable[..., str], studio: Path) -> None:
    """Trainings of two steps."""
    lines = next(block for block in blocks("sh") if "train-style" in block).splitlines()
    short = " --steps 2 --batch 2 --rank 2 --resolution 64 --device cpu"
    lcmmerge(studio, *(line.partition("#")[0] + short if "--data" in line else line for line in lines))
    written = ("own-lcm.safetensors", "own-style.safetensors", "study/report.html", "images/0000-0.png")
    assert all((studio / name).is_file() for name in written)


def test_exporting(
    lcmmerge: Callable[..., str], studio: Path, files: Callable[[str], Files], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Without torch.compile, which takes a minute to begin; graphs are those that another test made, or will find."""
    exported(tmp_path_factory, files("sd1"))
    lines = next(block for block in blocks("sh") if "relambda" in block).splitlines()
    short = {"bench": " --no-compile --repeats 1 --warmup 0"}
    lcmmerge(studio, *(line.partition("#")[0] + short.get(line.split()[1], "") for line in lines))
    assert all((studio / name).is_file() for name in ("graphs/unet/model.onnx", "from-graphs/0000-0.png"))


def test_the_result_draws(lcmmerge: Callable[..., str], run: Callable[..., str], folder: Path) -> None:
    command = next(line for line in README.splitlines() if "--layout diffusers" in line)
    lcmmerge(folder, f"{command} --force")
    code = next(block for block in blocks("python") if "diffusers" in block)
    check = "assert image.size[0] > 8 and type(pipe.scheduler).__name__ == 'LCMScheduler'"
    run(folder, exec, f"{code}\n{check}", {})


def test_in_python(run: Callable[..., str], folder: Path) -> None:
    code = next(block for block in blocks("python") if "import lcmmerge" in block)
    assert "style" in run(folder, exec, code, {})
    assert (folder / "merged.safetensors").is_file()

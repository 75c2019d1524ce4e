from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from adapterfile import write
from fusing import Files, fuse
from torch import ones

if TYPE_CHECKING:
    from conftest import Ran

NO_TORCH = """
import sys
from lcmmerge.cli import cli
cli(["inspect", sys.argv[1]], standalone_mode=False)
print([name for name in ("torch", "numpy", "diffusers", "huggingface_hub") if name in sys.modules])
"""


@pytest.mark.parametrize("kind", ["base", "lcm"])
def test_no_heavy_import(kind: str, files: Callable[[str], Files]) -> None:
    path = files("sdxl").base() if kind == "base" else files("sdxl").lcm
    done = subprocess.run([sys.executable, "-c", NO_TORCH, path], capture_output=True, text=True, check=True)
    assert "Stable Diffusion XL" in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"


def test_a_checkpoint(files: Callable[[str], Files], cli: Callable[..., Ran]) -> None:
    ran = cli("inspect", files("sd1").base())
    assert ran.code == 0
    for word in ("Stable Diffusion 1", "base, single-file", "unet", "vae", "text_encoder", "F16", "278 modules"):
        assert word in ran.out
    facts = json.loads(cli("inspect", files("sd1").base(), "--json").out)
    assert (facts["kind"], facts["architecture"], facts["purpose"]) == ("checkpoint", "sd1", "base")
    assert facts["parameters"] == sum(part["parameters"] for part in facts["parts"].values())
    assert facts["lcm_lora"]["modules"] == 278


def test_a_diffusers_folder(files: Callable[[str], Files], cli: Callable[..., Ran]) -> None:
    facts = json.loads(cli("inspect", files("sd2").folder(), "--json").out)
    assert (facts["title"], facts["layout"], len(facts["files"])) == ("Stable Diffusion 2", "diffusers", 3)


def test_an_adapter(files: Callable[[str], Files], cli: Callable[..., Ran]) -> None:
    ran = cli("inspect", files("sdxl").style)
    assert "Adapter for Stable Diffusion XL, kohya names, F16" in ran.out
    facts = json.loads(cli("inspect", files("sdxl").style, "--json").out)
    assert facts["parts"][-1]["ranks"] == {"4": facts["parts"][-1]["modules"]}
    assert facts["parts"][-1]["alphas"] == {"2": facts["parts"][-1]["modules"]}


def test_the_recipe_of_a_merge_and_its_metadata(
    files: Callable[[str], Files], cli: Callable[..., Ran], tmp_path: Path
) -> None:
    sd1 = files("sd1")
    fuse(sd1.base(), tmp_path / "merged.safetensors", sd1.style, sd1.lcm)
    ran = cli("inspect", tmp_path / "merged.safetensors")
    assert f"Recipe: {sd1.base().name} + 0.8 × {sd1.style.name} + 1.0 × {sd1.lcm.name}" in ran.out
    assert "modelspec.architecture" in ran.out
    assert "rounding_seed" not in without_space(ran.out)  # far behind in a long value
    assert "rounding_seed" in without_space(cli("inspect", tmp_path / "merged.safetensors", "-v").out)
    facts = json.loads(cli("inspect", tmp_path / "merged.safetensors", "--json").out)
    assert [term["lambda"] for term in facts["recipe"]["terms"]] == [0.8, 1.0]


def without_space(text: str) -> str:
    return "".join(text.split())


def test_something_else(cli: Callable[..., Ran], tmp_path: Path) -> None:
    write(tmp_path / "vae.safetensors", {"decoder.conv_in.weight": ones(1, 1, 1, 1)})
    ran = cli("inspect", tmp_path / "vae.safetensors")
    assert (ran.code, "this is a VAE alone" in ran.out) == (0, True)


def test_a_missing_file(cli: Callable[..., Ran]) -> None:
    ran = cli("inspect", "nowhere.safetensors")
    assert (ran.code, ran.out) == (1, "")
    assert ran.err.startswith("Error: file 'nowhere.safetensors': no such file or folder\nHint: ")

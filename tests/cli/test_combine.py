from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from fusing import Files

if TYPE_CHECKING:
    from conftest import Ran


@pytest.mark.e2e
def test_report(files: Callable[[str], Files], cli: Callable[..., Ran], tmp_path: Path) -> None:
    style, lcm = files("sdxl").style, files("sdxl").lcm
    ran = cli("combine", style, 0.8, lcm, -0.5, "-o", tmp_path / "both")
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.startswith(f"{tmp_path / 'both.safetensors'}  ")
    assert ran.out.endswith("100.00% of ‖Δ‖² kept\n")
    shown = cli("inspect", tmp_path / "both.safetensors").out
    assert f"Recipe: 0.8 × {style.name} + -0.5 × {lcm.name}" in shown
    assert "Adapter for Stable Diffusion XL, kohya names, F16" in shown
    ran = cli("combine", style, 1, lcm, 1, "--rank", 3, "--dtype", "fp32", "-o", tmp_path / "small", "--json")
    facts = json.loads(ran.out)
    assert 0 < facts["energy"] < 1
    assert {layer["rank"] for layer in facts["layers"]} == {3}


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("{style}", "1", "nowhere.safetensors", "1", "-o", "{new}"), 1, "adapter 'nowhere.safetensors': no such file"),
        (("{style}", "1", "{base}", "1", "-o", "{new}"), 1, "is not an adapter"),
        (("{style}", "1", "{lcm}", "1", "-o", "{style}", "--force"), 1, "is an input of this run"),
        (("{style}", "1", "{lcm}", "1", "-o", "{old}"), 1, "exists already"),
        (("{style}", "1", "{xl}", "1", "-o", "{new}"), 3, "looks made for Stable Diffusion XL"),
        (("{style}", "1", "-o", "{new}", "--base", "{xlbase}"), 3, "is not a module of Stable Diffusion XL"),
        (("{style}", "0", "-o", "{new}"), 3, "every λ is 0"),
        (("{style}", "nan", "-o", "{new}"), 2, "not a finite number"),
        (("{style}", "{lcm}", "1", "-o", "{new}"), 2, "each adapter with its λ"),
        (("{style}", "1", "--ranc", "2", "-o", "{new}"), 1, "adapter '--ranc'"),
        (("-o", "{new}"), 2, "Missing argument"),
        (("{style}", "1"), 2, "Missing option '-o'"),
    ],
)
def test_faults(
    arguments: tuple[str, ...],
    code: int,
    message: str,
    files: Callable[[str], Files],
    cli: Callable[..., Ran],
    tmp_path: Path,
) -> None:
    (tmp_path / "old.safetensors").touch()
    paths = {
        "style": files("sd1").style,
        "lcm": files("sd1").lcm,
        "base": files("sd1").base(),
        "xl": files("sdxl").style,
        "xlbase": files("sdxl").base(),
        "old": tmp_path / "old.safetensors",
        "new": tmp_path / "new",
    }
    ran = cli("combine", *(argument.format(**paths) for argument in arguments))
    assert (ran.code, ran.out) == (code, "")
    assert message in ran.err
    assert [path.name for path in tmp_path.iterdir()] == ["old.safetensors"]


def test_an_existing_folder_takes_the_file(
    files: Callable[[str], Files], cli: Callable[..., Ran], tmp_path: Path
) -> None:
    style, lcm = files("sd1").style, files("sd1").lcm
    ran = cli("combine", style, 1, lcm, 1, "-o", f"{tmp_path}/")
    assert (ran.code, ran.err) == (0, "")
    assert [path.name for path in tmp_path.iterdir()] == [f"{style.stem}-{lcm.stem}.safetensors"]

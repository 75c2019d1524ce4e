from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from distilling import FAST
from fusing import Files, load, metadata
from pictures import folder_of

if TYPE_CHECKING:
    from conftest import Ran


def test_from_a_folder_of_images_to_a_merge(
    files: Callable[[str], Files], cli: Callable[..., Ran], tmp_path: Path
) -> None:
    base, data = files("sd1").folder("fp32"), folder_of(tmp_path / "images", 4)
    style = tmp_path / "style.safetensors"
    ran = cli("train-style", base, "--data", data, "-o", style, "--steps", 2, "--snr-gamma", 5, *FAST)
    assert (ran.code, ran.out) == (0, f"{style}  after step 2\n")
    assert "Draw with DPMSolverMultistepScheduler (timestep_spacing trailing, " in ran.err
    recipe = json.loads(metadata(style)["sd_merge_recipe"])
    assert (recipe["type"], recipe["objective"]) == (
        "lcmmerge train-style",
        {"objective": "diffusion", "snr_gamma": 5},
    )
    assert recipe["student"] == {"rank": 2, "alpha": 2}
    assert len(load(style)) == 3 * 278  # as many modules as the paper's
    merged = cli("fuse", base, style, "--lcm", files("sd1").lcm, "-o", tmp_path / "merged", "--json")
    assert [row["parameters"] for row in json.loads(merged.out)["coverage"]] == [278, 278]

"""``lcmmerge accelerators``, and what ``fuse`` makes of an accelerator: its file, its scheduler, its metadata."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import qwen
import torch
from diffusers import DiffusionPipeline
from fusing import Files, assert_same, load, metadata
from pico import lcm_lora

from lcmmerge.accelerators import ACCELERATORS

if TYPE_CHECKING:
    from conftest import Ran

ONLINE_NEVER = {"HF_HUB_OFFLINE": "1"}


def cached(hub: Path, name: str, arch: str) -> dict[str, str]:
    """An LCM-LoRA of our own in a Hub cache, as the file that the table names; the environment that finds it."""
    owner, repository, file = ACCELERATORS[name].files[arch].removeprefix("hf://").split("/", 2)
    folder = hub / "hub" / f"models--{owner}--{repository}"
    snapshot = folder / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("0" * 40)
    lcm_lora(snapshot / file, arch)
    return ONLINE_NEVER | {"HF_HOME": str(hub)}


def draw(folder: Path, steps: int, **arguments: float) -> DiffusionPipeline:
    """Load a folder as users do, and draw once."""
    pipeline = DiffusionPipeline.from_pretrained(folder, local_files_only=True, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    image = pipeline("in", num_inference_steps=steps, height=64, width=64, output_type="pt", **arguments).images[0]
    assert len(pipeline.scheduler.timesteps) == steps
    assert image.isfinite().all()
    assert image.std() > 0
    return pipeline


def config(folder: Path) -> dict[str, object]:
    found = json.loads((folder / "scheduler" / "scheduler_config.json").read_text("utf-8"))
    assert isinstance(found, dict)
    return found


def test_the_list_fits_a_terminal(cli: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    lines = cli("accelerators").out.splitlines()
    rows = [line for line in lines if line.split(maxsplit=1)[:1] and line.split()[0] in ACCELERATORS]
    assert [row.split()[0] for row in rows] == list(ACCELERATORS)  # no row is folded
    assert max(map(len, rows)) <= 80
    text = "\n".join(lines)
    assert "dmd2, flash-sd: cc-by-nc-4.0, no commercial use." in text
    assert "hyper-cfg-8steps, hyper-cfg-12steps: unverified" in text


def test_the_list_as_json(cli: Callable[..., Ran]) -> None:
    found = {entry["name"]: entry for entry in json.loads(cli("accelerators", "--json").out)}
    assert found.keys() == ACCELERATORS.keys()
    assert found["tcd"]["arguments"] == {"eta": 0.3}
    assert found["lcm"]["steps"] == {"default": 4, "low": 2, "high": 8}
    assert found["hyper-cfg-8steps"]["unverified"] == ["scheduler", "default guidance"]


def test_one_architectures_list(cli: Callable[..., Ran]) -> None:
    assert [entry["name"] for entry in json.loads(cli("accelerators", "ssd1b", "--json").out)] == ["lcm"]
    assert ACCELERATORS["lcm"].files["ssd1b"] in cli("accelerators", "ssd1b", "-v").out
    wrong = cli("accelerators", "nothing")
    assert (wrong.code, "'nothing' is none of auraflow, chroma, cosmos2" in wrong.err) == (2, True)


@pytest.mark.parametrize(
    ("word", "listed"),
    [
        ("flux1", {"flux1"}), ("flux", {"flux1", "flux2"}), ("z-image", {"z_image"}), ("SDXL", {"sdxl"}),
        ("qwen_image", {"qwen_image"}), ("qwen", {"qwen_image", "qwen_image21"}), ("krea", {"krea2"}),
        ("wan2.2", {"wan"}), ("sdxl_refiner", set()),
    ],
)  # fmt: skip
def test_close_names(word: str, listed: set[str], cli: Callable[..., Ran]) -> None:
    found = json.loads(cli("accelerators", word, "--json").out)
    assert {entry["name"] for entry in found} == {
        name for name, entry in ACCELERATORS.items() if listed & entry.files.keys()
    }
    assert bool(found) == bool(listed)


@pytest.mark.e2e
def test_the_default_bakes_its_scheduler(
    files: Callable[[str], Files], process: Callable[..., Ran], tmp_path: Path
) -> None:
    base, out = files("sd1").folder(), tmp_path / "baked"
    ran = process("fuse", base, "-o", out, **cached(tmp_path / "hub", "lcm", "sd1"))
    assert (ran.code, ran.err) == (0, "Draw with LCMScheduler, 4 steps (2–8), guidance 1 (0–2).\n")
    assert type(draw(out, 4, guidance_scale=1.0).scheduler).__name__ == "LCMScheduler"
    before, after = config(base), config(out)
    assert before["_class_name"] == "DDIMScheduler"
    for key in ("beta_start", "beta_end", "beta_schedule", "prediction_type", "steps_offset"):
        assert after[key] == before[key]
    recipe = json.loads(metadata(out / "unet" / "diffusion_pytorch_model.safetensors")["sd_merge_recipe"])
    assert recipe["sampling"] == {
        "scheduler": "LCMScheduler", "settings": {}, "steps": 4, "guidance": 1, "arguments": {},
    }  # fmt: skip


@pytest.mark.e2e
def test_a_name_is_the_architectures_file(
    files: Callable[[str], Files], process: Callable[..., Ran], tmp_path: Path
) -> None:
    environment = cached(tmp_path / "hub", "hyper-8steps", "sdxl")
    named, given = tmp_path / "named.safetensors", tmp_path / "given.safetensors"
    file = next((tmp_path / "hub").rglob("*.safetensors"))
    ran = process("fuse", files("sdxl").base(), "--lcm", "hyper-8steps", "-o", named, **environment)
    assert ran.err == "Draw with DDIMScheduler (timestep_spacing trailing), 8 steps, guidance 0.\n"
    assert process("fuse", files("sdxl").base(), "--lcm", file, "-o", given, **ONLINE_NEVER).err == ran.err
    assert_same(load(named), load(given))
    assert json.loads(metadata(given)["sd_merge_recipe"])["sampling"]["scheduler"] == "DDIMScheduler"  # by its file
    reference = ACCELERATORS["hyper-8steps"].files["sdxl"]
    again = process("fuse", files("sdxl").base(), "--lcm", reference, "-o", named, "--force", **environment)
    assert again.err == ran.err


@pytest.mark.parametrize(
    ("name", "arch"), [("tcd", "sd1"), ("tcd", "sd2"), ("dmd2", "sdxl")]
)
def test_a_local_file_is_what_it_is_said_to_be(
    name: str, arch: str, files: Callable[[str], Files], cli: Callable[..., Ran], tmp_path: Path
) -> None:
    out, sampling = tmp_path / "baked", ACCELERATORS[name].sampling
    ran = cli("fuse", files(arch).folder(), "--lcm", files(arch).lcm, "--accelerator", name, "-o", out)
    assert ran.code == 0
    assert f"Draw with {sampling}." in ran.err
    assert ("no commercial use" in ran.err) == (name == "dmd2")
    pipeline = draw(out, 4, guidance_scale=sampling.guidance.default, **sampling.arguments)
    assert type(pipeline.scheduler).__name__ == sampling.scheduler
    assert config(out)["prediction_type"] == config(files(arch).folder())["prediction_type"]
    index = json.loads((out / "model_index.json").read_text("utf-8"))
    assert index["scheduler"] == ["diffusers", sampling.scheduler]


def test_a_flow_s_folder_gets_the_shift(cli: Callable[..., Ran], tmp_path: Path) -> None:
    base, fast, out = qwen.folder(tmp_path / "base"), tmp_path / "fast.safetensors", tmp_path / "out"
    qwen.lora(fast, "lightning")
    ran = cli("fuse", base, "--accelerator", fast, "--accelerator", "qwen-4steps", "-o", out)
    assert (ran.code, f"Draw with {ACCELERATORS['qwen-4steps'].sampling}." in ran.err) == (0, True)
    assert "Warning" not in ran.err
    after = config(out)
    assert (after["_class_name"], after["shift"]) == ("FlowMatchEulerDiscreteScheduler", 3.0)
    file = next((out / "transformer").glob("*.safetensors"))
    assert json.loads(metadata(file)["sd_merge_recipe"])["sampling"]["settings"]["shift"] == 3.0


def test_a_scheduler_that_the_pipeline_does_not_take_is_not_written(cli: Callable[..., Ran], tmp_path: Path) -> None:
    base, fast, out = qwen.folder(tmp_path / "base"), tmp_path / "fast.safetensors", tmp_path / "out"
    qwen.lora(fast, "lightning")
    ran = cli("fuse", base, "--accelerator", fast, "--accelerator", "chroma-flash-heun", "-o", out)
    assert (ran.code, config(out)) == (0, config(base))
    assert "the output keeps the base's scheduler: its pipeline takes no FlowMatchHeunDiscreteScheduler" in ran.err


@pytest.mark.parametrize(
    ("file", "given", "strength"),
    [
        ("fast", ("--accelerator", "krea2-turbo"), 0.8),
        ("Hyper-FLUX.1-dev-8steps-lora", (), 0.125),
        ("Hyper-FLUX.1-dev-8steps-lora", ("--lambda", 1, 0.5), 0.5),
        ("fast", (), 1.0),
    ],
)
def test_the_usual_strength_is_the_default(
    file: str, given: tuple[object, ...], strength: float, cli: Callable[..., Ran], tmp_path: Path
) -> None:
    base = qwen.single_file(tmp_path / "base.safetensors")
    fast = qwen.lora(tmp_path / f"{file}.safetensors", "lightning")
    ran = cli("fuse", base, "--accelerator", fast, *given, "-o", tmp_path / "out", "--dry-run", "--json")
    assert [term["lambda"] for term in json.loads(ran.out)["terms"]] == [strength]


def test_what_a_licence_asks_is_warned_of_once(cli: Callable[..., Ran], tmp_path: Path) -> None:
    base = qwen.single_file(tmp_path / "base.safetensors")
    fast = qwen.lora(tmp_path / "fast.safetensors", "lightning")
    two = qwen.lora(tmp_path / "Hyper-FLUX.1-dev-8steps-lora.safetensors", "kohya", seed=2)
    given = ("--lcm", fast, "--accelerator", "krea2-turbo", "--adapter", two, 0.125, "--adapter", two, 0.1)
    ran = cli("fuse", base, *given, "-o", tmp_path / "out")
    assert ran.code == 0
    warnings = [line for line in ran.err.splitlines() if " is under " in line]
    assert warnings == [
        f"Warning: {ACCELERATORS[name].obligations}" for name in ("krea2-turbo", "hyperflux-8steps")
    ]
    assert "must be named “Krea …”" in warnings[0]


def test_an_existing_path_wins_over_a_name(
    files: Callable[[str], Files], cli: Callable[..., Ran], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("lcm").symlink_to(files("sd1").lcm)
    ran = cli("fuse", files("sd1").base(), "--lcm", "lcm", "-o", "fused", "--dry-run", "--json")
    assert json.loads(ran.out)["sampling"] is None


def test_a_folder_says_whose_scheduler_it_keeps(
    files: Callable[[str], Files], cli: Callable[..., Ran], tmp_path: Path
) -> None:
    """A file that nobody named is known where its name, modules or metadata tell it."""
    sd1, official = files("sd1"), tmp_path / "official" / "pytorch_lora_weights.safetensors"
    official.parent.mkdir()
    lcm_lora(official, "sd1", rank=64)
    ran = cli("fuse", sd1.folder(), "--lcm", sd1.lcm, "-o", tmp_path / "untold")
    assert ran.err.startswith("Warning: which accelerator sd1-lcm.safetensors is cannot be told, so the output keeps")
    assert "--accelerator" in ran.err
    assert (ran.code, "Draw with" in ran.err) == (0, False)
    assert config(tmp_path / "untold") == config(sd1.folder())
    ran = cli("fuse", sd1.folder(), "--lcm", official, "-o", tmp_path / "told")
    assert "Warning" not in ran.err
    assert config(tmp_path / "told")["_class_name"] == "LCMScheduler"
    quiet = cli("fuse", sd1.base(), "--lcm", sd1.lcm, "-o", tmp_path / "file.safetensors")
    assert (quiet.code, quiet.err) == (0, "")


def test_without_strength_there_is_no_accelerator(
    files: Callable[[str], Files], cli: Callable[..., Ran], tmp_path: Path
) -> None:
    sd1, out = files("sd1"), tmp_path / "baked"
    ran = cli("fuse", sd1.folder(), sd1.style, "--lcm", sd1.lcm, "--accelerator", "tcd", "--lambda", 1, 0, "-o", out)
    assert (ran.code, "Draw with" in ran.err) == (0, False)
    assert config(out) == config(sd1.folder())


@pytest.mark.parametrize(
    ("arch", "arguments", "message", "hint"),
    [
        (
            "ssd1b",
            ["--lcm", "tcd"],
            "SSD-1B: the accelerator tcd has no file for it",
            "--accelerator takes any of lcm, or a file",
        ),
        ("sd1", ["--lcm", "hyper-8step"], "'hyper-8step': neither a file nor the name", "did you mean hyper-8steps"),
        (
            "sd1",
            ["--lcm", "nothing-alike"],
            "'nothing-alike': neither a file nor the name",
            "`lcmmerge accelerators` lists",
        ),
        (
            "sd1",
            ["--accelerator", "tcd", "--lcm", "lcm"],
            "the accelerator is tcd, not lcm",
            "merge one by --accelerator tcd",
        ),
        (
            "sd1",
            ["--accelerator", "a.safetensors", "--accelerator", "b.safetensors"],
            "the accelerator is one file, not a.safetensors and b.safetensors",
            "add the other by --adapter REF λ",
        ),
        (
            "sd1",
            ["--lcm", "nowhere.safetensors"],
            "lcm 'nowhere.safetensors': no such file or folder",
            "check the path",
        ),
    ],
)
def test_refusals(
    arch: str, arguments: list[str], message: str, hint: str, files: Callable[[str], Files], cli: Callable[..., Ran],
    tmp_path: Path,
) -> None:  # fmt: skip
    ran = cli("fuse", files(arch).base(), "-o", tmp_path / "fused", *arguments)
    assert ran.code == (2 if "--accelerator" in arguments else 1)
    error, cure = ran.err.splitlines()
    assert error.startswith(f"Error: {message}")
    assert cure.startswith(f"Hint: {hint}")
    assert not list(tmp_path.iterdir())

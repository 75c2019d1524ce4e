"""Recipes whose sources are on the Hub: the shipped ones, on picos of the published names, and what may happen."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import forked
import pytest
import torch
import yaml
from families import single_file, state_of
from forked import command, commands
from fusing import Files, edited
from hollow import hollow_lora, hollow_model
from hub import Hub
from recipefile import contents
from safetensors.torch import load_file, save_file

pytestmark = pytest.mark.e2e

SHIPPED = Path(__file__).parents[2] / "recipes"
RECIPES = sorted(path for path in SHIPPED.glob("*.yaml") if path.stem != "digits")  # which README's main job runs
BASES = {
    "sd1": ("stable-diffusion-v1-5/stable-diffusion-v1-5", "Lykon/dreamshaper-7"),
    "sdxl": ("stabilityai/stable-diffusion-xl-base-1.0",),
    "ssd1b": ("segmind/SSD-1B",),
}
LCM = {"sd1": "sdv1-5", "sdxl": "sdxl", "ssd1b": "ssd-1b"}


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    files = {name: Files(tmp_path_factory.mktemp(name), name) for name in BASES}
    lora = "pytorch_lora_weights.safetensors"
    with Hub() as hub:
        for name, repos in BASES.items():
            for repo in repos:
                hub.add(repo, _variant(files[name].folder()), license="creativeml-openrail-m")
            hub.add(f"latent-consistency/lcm-lora-{LCM[name]}", {lora: files[name].lcm}, license="openrail++")
        sdxl = files["sdxl"]
        hub.add("h1t/TCD-SDXL-LoRA", {lora: sdxl.lcm}, license="mit")
        hub.add("ByteDance/Hyper-SD", {"Hyper-SDXL-8steps-lora.safetensors": sdxl.lcm})
        hub.add("TheLastBen/Papercut_SDXL", {"papercut.safetensors": sdxl.style}, license="creativeml-openrail-m")
        hub.add("goofyai/3d_render_style_xl", {"3d_render_style_xl.safetensors": sdxl.style}, license="apache-2.0")
        state = {name: tensor.bfloat16() for name, tensor in state_of("z_image").items()}
        base = single_file(tmp_path_factory.mktemp("z_image") / "z_image_bf16.safetensors", "z_image", state)
        hub.add("Comfy-Org/z_image", {"split_files/diffusion_models/z_image_bf16.safetensors": base})
        for repo, name in (
            ("tarn59/pixel_art_style_lora_z_image_turbo", "pixel_art_style_z_image_turbo"),
            ("alibaba-pai/Z-Image-Fun-Lora-Distill", "Z-Image-Fun-Lora-Distill-8-Steps-2603"),
        ):
            hub.add(repo, {f"{name}.safetensors": _z_image_lora(base.with_name(f"{name}.safetensors"))})
        yield hub


def _z_image_lora(path: Path) -> Path:
    """Of the feed-forwards, by the single file's names; no two are the same."""
    generator = torch.Generator().manual_seed(len(path.stem))
    tensors = {}
    for name, tensor in state_of("z_image").items():
        if ".feed_forward." in name:
            module = name.replace("transformer.", "diffusion_model.").removesuffix(".weight")
            out, into = tensor.shape
            tensors[f"{module}.lora_B.weight"] = torch.randn(out, 2, generator=generator)
            tensors[f"{module}.lora_A.weight"] = torch.randn(2, into, generator=generator)
    save_file(tensors, path)
    return path


def _folder(folder: Path) -> dict[str, Path]:
    return {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}


def _variant(folder: Path) -> dict[str, Path]:
    """A diffusers folder's files, the weights as the variant fp16."""
    return {name.replace(".safetensors", ".fp16.safetensors"): path for name, path in _folder(folder).items()}


Lcmmerge = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def lcmmerge(hub: Hub, tmp_path: Path) -> Lcmmerge:
    """``lcmmerge("run", recipe, …)``: several commands, each a list, go one after another in one process."""

    def run(*lines: list[object], code: int = 0, **more: str) -> subprocess.CompletedProcess[str]:
        words = [[str(word) for word in line] for line in lines]
        does = (commands, *words) if len(words) > 1 else (command, *words[0])
        ended = forked.run(*does, env=hub.environment(tmp_path / "home", **more), cwd=tmp_path)
        assert ended.returncode == code, ended.stdout + ended.stderr
        return ended

    return run


def small(folder: Path, name: str = "small.yaml", **more: Any) -> Path:
    """A recipe of the LCM-LoRA alone, over SD 1."""
    lora = "hf://latent-consistency/lcm-lora-sdv1-5/pytorch_lora_weights.safetensors"
    base = {"reference": "hf://Lykon/dreamshaper-7", "variant": "fp16"}
    content = {"version": 1, "sources": {"base": base, "lcm": lora}, "fuse": {"base": "base", "terms": {"lcm": 1.0}}}
    path = folder / name
    path.write_text(yaml.safe_dump(content | more))
    return path


def documents(text: str) -> list[Any]:
    """JSON documents, one after another."""
    found = []
    while text := text.lstrip():
        value, end = json.JSONDecoder().raw_decode(text)
        found.append(value)
        text = text[end:]
    return found


def front(card: Path) -> Mapping[str, object]:
    """A card's front matter, as the Hub reads it."""
    found: Mapping[str, object] = yaml.safe_load(card.read_text("utf-8").split("---\n")[1])
    return found


def test_the_shipped_recipes(lcmmerge: Lcmmerge, tmp_path: Path) -> None:
    lcmmerge(*(["run", path, "-o", tmp_path / path.stem, "--quiet"] for path in RECIPES))
    outputs = {path.parent.name: path.parent for path in tmp_path.glob("*/*/README.md")}
    assert len(outputs) == len(RECIPES) + 5  # the grid has six
    schedulers = {
        name: json.loads((folder / "scheduler" / "scheduler_config.json").read_text())["_class_name"]
        for name, folder in outputs.items()
        if name != "z-image-fp8"  # which is one file
    }
    assert (outputs["z-image-fp8"] / "z-image-fp8.safetensors").exists()
    assert schedulers["sdxl-tcd"] == "TCDScheduler"
    assert schedulers["sdxl-hyper"] == "DDIMScheduler"
    assert {name for name, scheduler in schedulers.items() if scheduler != "LCMScheduler"} == {"sdxl-tcd", "sdxl-hyper"}
    assert front(outputs["dreamshaper-lcm"] / "README.md") == {
        "base_model": ["Lykon/dreamshaper-7", "latent-consistency/lcm-lora-sdv1-5"],
        "base_model_relation": "merge",
        "license": "other",
        "library_name": "diffusers",
        "pipeline_tag": "text-to-image",
        "tags": ["lcmmerge", "merge", "lora", "text-to-image"],
    }


def test_a_plan_downloads_no_weights(lcmmerge: Lcmmerge, hub: Hub, tmp_path: Path) -> None:
    path = small(tmp_path)
    plan = ["run", path, "--dry-run", "--json", "-o"]
    hub.requests.clear()
    said = json.loads(lcmmerge([*plan, tmp_path / "out"]).stdout)
    assert [request for request in hub.asked("/lfs/") if request.range is None] == []
    assert said["steps"][0]["downloads"] == sum(
        file["bytes"]
        for source in said["sources"].values()
        for name, file in source["files"].items()
        if name not in ("model_index.json", "scheduler/scheduler_config.json")  # which says what else is needed
    )
    run = ["run", path, "-o", tmp_path / "out"]
    _, again, elsewhere = documents(
        lcmmerge([*run, "--json"], [*plan, tmp_path / "out"], [*plan, tmp_path / "b"]).stdout
    )
    assert again["steps"][0]["done"]
    assert (elsewhere["steps"][0]["downloads"], elsewhere["steps"][0]["done"]) == (0, False)


def test_a_plan_of_7_gb_moves_2_mb_at_most(
    lcmmerge: Lcmmerge, hub: Hub, files: Callable[[str], Files], tmp_path: Path
) -> None:
    """A whole SDXL that becomes a pipeline whose tokenizers are as large as the real ones; locked or not."""
    base = hollow_model(tmp_path / "base.safetensors", "sdxl")
    lcm = hollow_lora(tmp_path / "lcm.safetensors", "sdxl", 64)
    hub.add("hollow/sdxl", {"base.safetensors": base}, sha256={"base.safetensors": "a" * 64})
    hub.add("hollow/lcm", {"lcm.safetensors": lcm}, sha256={"lcm.safetensors": "b" * 64})
    configs: dict[str, bytes | str | Path] = {
        name: path for name, path in _folder(files("sdxl").folder()).items() if path.suffix != ".safetensors"
    }
    unet = json.loads((files("sdxl").folder() / "unet" / "config.json").read_text())
    unet |= {"block_out_channels": [320, 640, 1280], "cross_attention_dim": 2048}
    configs |= {"tokenizer/vocab.json": b"v" * 1_059_962, "tokenizer_2/vocab.json": b"w" * 1_059_962}
    hub.add("hollow/configs", configs | {"unet/config.json": json.dumps(unet)})
    path = small(
        tmp_path,
        sources={"base": "hf://hollow/sdxl", "lcm": "hf://hollow/lcm", "configs": "hf://hollow/configs"},
        fuse={"base": "base", "terms": {"lcm": 1.0}, "layout": "diffusers", "config_from": "configs"},
    )
    plan = ["run", path, "--dry-run", "-o", tmp_path / "out"]
    room = shutil.disk_usage(tmp_path).free > 7.2e9
    before = hub.sent
    lcmmerge(plan, code=0 if room else 1)
    assert hub.sent - before < 2e6
    assert not hub.asked("vocab.json")
    lcmmerge(["lock", path])
    assert len(hub.asked("vocab.json")) == 2
    before = hub.sent
    lcmmerge([*plan, "--locked"], code=0 if room else 1, HF_HOME=str(tmp_path / "fresh"))
    assert hub.sent - before < 2e6


def test_a_wrong_adapter_is_refused_before_a_download(lcmmerge: Lcmmerge, hub: Hub, tmp_path: Path) -> None:
    path = small(tmp_path)
    path.write_text(path.read_text().replace("lcm-lora-sdv1-5", "lcm-lora-sdxl"))
    hub.requests.clear()
    lcmmerge(["run", path, "-o", tmp_path / "out"], code=3)
    assert [request for request in hub.asked("/lfs/") if request.range is None] == []
    assert not (tmp_path / "out").exists()


def test_a_revision_that_moved(lcmmerge: Lcmmerge, hub: Hub, files: Callable[[str], Files], tmp_path: Path) -> None:
    """The lock holds its commit; without it the branch is followed."""
    path = small(tmp_path)
    lcmmerge(["lock", path], ["run", path, "-o", tmp_path / "before", "--locked"])
    lora = files("sd1").lcm
    name = next(name for name in load_file(lora) if name.endswith("lora_up.weight"))
    moved = edited(lora, tmp_path / "moved.safetensors", **{name: load_file(lora)[name] * 2})
    repo = "latent-consistency/lcm-lora-sdv1-5"
    old = hub.repositories[repo].branches["main"]
    hub.add(repo, {"pytorch_lora_weights.safetensors": moved}, license="openrail++")
    (tmp_path / "unlocked").mkdir()
    unlocked = small(tmp_path / "unlocked")
    try:
        lcmmerge(["run", path, "-o", tmp_path / "after", "--locked"], ["run", unlocked, "-o", tmp_path / "followed"])
    finally:
        hub.repositories[repo].branches["main"] = old
    before, weights = contents(tmp_path / "before"), "small/unet/diffusion_pytorch_model.safetensors"
    assert contents(tmp_path / "after") == before
    assert contents(tmp_path / "followed")[weights] != before[weights]


def test_a_file_that_is_not_what_was_locked(lcmmerge: Lcmmerge, tmp_path: Path) -> None:
    path = small(tmp_path)
    lcmmerge(["lock", path])
    lock = tmp_path / "small.yaml.lock"
    content = json.loads(lock.read_text())
    content["sources"]["lcm"]["files"]["pytorch_lora_weights.safetensors"]["sha256"] = "0" * 64
    lock.write_text(json.dumps(content))
    said = lcmmerge(["run", path, "-o", tmp_path / "out", "--locked"], code=5).stderr
    assert "lcm: pytorch_lora_weights.safetensors changed: sha256 000000000000… became" in said


def test_offline_from_a_warm_cache(lcmmerge: Lcmmerge, tmp_path: Path) -> None:
    path = small(tmp_path)
    lcmmerge(["run", path, "-o", tmp_path / "out"], code=1, HF_HUB_OFFLINE="1")
    lcmmerge(["lock", path], ["run", path, "-o", tmp_path / "online", "--locked"])
    lcmmerge(["run", path, "-o", tmp_path / "offline", "--locked"], HF_HUB_OFFLINE="1")
    assert contents(tmp_path / "online") == contents(tmp_path / "offline")


def test_an_accelerator_by_name_and_licences_that_differ(lcmmerge: Lcmmerge, tmp_path: Path) -> None:
    path, folder = small(tmp_path), tmp_path / "named"
    folder.mkdir()
    reference = "hf://latent-consistency/lcm-lora-sdv1-5/pytorch_lora_weights.safetensors"
    (folder / path.name).write_text(path.read_text().replace(reference, "lcm"))
    ran = lcmmerge(["run", path, "-o", tmp_path / "one"], ["run", folder / path.name, "-o", tmp_path / "other"])
    one, other = contents(tmp_path / "one"), contents(tmp_path / "other")
    assert {name for name in one if one[name] != other[name]} == {"small.yaml.lock", "run.json"}
    doubt = "small: its sources have different licences: base creativeml-openrail-m, lcm openrail++"
    assert ran.stderr.count(doubt) == 2
    assert f"**{doubt}".encode() in one["small/README.md"]

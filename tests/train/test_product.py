"""Products are read by those who did not write them: diffusers, and lcmmerge's own fuse."""

from __future__ import annotations

import json
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from diffusers import DiffusionPipeline, UNet2DConditionModel
from distilling import networks, origin, trained
from fusing import Files, fuse, load, metadata
from pico import lcm_lora, pico
from tiers import of_each
from torch import Tensor
from training import batch_of

from lcmmerge.archs import architectures, names_of
from lcmmerge.errors import NoEffectError, OutputError
from lcmmerge.tensors import DTYPES
from lcmmerge.train.networks import FullNetworks, LoraNetworks
from lcmmerge.train.noise import Noise
from lcmmerge.train.product import write_full, write_lora

NAMES = ("sd1", "sd2", "sdxl", "ssd1b")
AT = torch.tensor([999, 499, 259])


def output_of(unet: UNet2DConditionModel, name: str) -> Tensor:
    given = batch_of(name)
    with torch.no_grad():
        return unet(given.latents, AT, **given.prompt.arguments(), return_dict=False)[0]


def trained_output(found: LoraNetworks, name: str) -> Tensor:
    given = batch_of(name)
    with torch.no_grad():
        return found.student(given.latents, AT, given.prompt, None)


EXACT = [pytest.param(name, "F32", 1e-5, marks=pytest.mark.e2e) for name in NAMES]


@pytest.mark.parametrize(("name", "dtype", "within"), [("sd1", "F16", 1e-3), *EXACT])
def test_diffusers_loads_the_lora(
    name: str, dtype: str, within: float, files: Callable[[str], Files], tmp_path: Path
) -> None:
    found = trained(name)
    write_lora(tmp_path / "lcm.safetensors", found, origin(name, files(name).folder("fp32")), dtype=DTYPES[dtype])
    pipeline = deepcopy(pico(name).pipeline)
    pipeline.load_lora_weights(tmp_path, weight_name="lcm.safetensors")
    pipeline.fuse_lora()
    expected = trained_output(found, name)
    assert not torch.allclose(output_of(pico(name).pipeline.unet, name), expected, atol=10 * within)
    assert torch.allclose(output_of(pipeline.unet, name), expected, rtol=within, atol=within)


@pytest.mark.parametrize("name", of_each(NAMES))
def test_fuse_takes_the_lora_whole(name: str, files: Callable[[str], Files], tmp_path: Path) -> None:
    found, base = trained(name), files(name).folder("fp32")
    lora, merged = tmp_path / "lcm.safetensors", tmp_path / "merged"
    modules = write_lora(lora, found, origin(name, base), dtype=DTYPES["F32"])
    report = fuse(base, merged, lcm=lora, strengths=(0.0, 1.0))
    assert [(row.term, row.component, row.parameters) for row in report.rows] == [("lcm", "unet", modules)]
    unet = deepcopy(pico(name).pipeline.unet)
    unet.load_state_dict(load(merged / "unet"))
    assert torch.allclose(output_of(unet, name), trained_output(found, name), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", of_each(NAMES))
def test_the_published_files_shapes(name: str, files: Callable[[str], Files], tmp_path: Path) -> None:
    """Modules, shapes and dtypes of the published files (of rank 3 here), and alpha; of SD 1 the names, too."""
    target, published = tmp_path / "lcm.safetensors", tmp_path / "official.safetensors"
    write_lora(target, trained(name), origin(name, files(name).folder("fp32")))
    official, found = load(lcm_lora(published, name, rank=3)), load(target)
    find = names_of(architectures()[name]).find

    def content(file: dict[str, Tensor]) -> dict[tuple[object, str], tuple[object, ...]]:
        named = {key: key.partition(".") for key in file}
        return {(find(named[key][0]), named[key][2]): (file[key].shape, file[key].dtype) for key in file}

    assert content(found) == content(official)
    assert (found.keys() == official.keys()) == (name in ("sd1", "sd2"))
    assert {float(value) for key, value in found.items() if key.endswith(".alpha")} == {2.0}


def test_metadata_and_bytes(files: Callable[[str], Files], tmp_path: Path) -> None:
    said = origin("sd1", files("sd1").folder("fp32"))
    first, second = tmp_path / "a" / "lcm.safetensors", tmp_path / "b" / "lcm.safetensors"
    for target in (first, second):
        target.parent.mkdir()
        write_lora(target, trained("sd1"), said)
    assert first.read_bytes() == second.read_bytes()
    assert first.with_suffix(".md").read_bytes() == second.with_suffix(".md").read_bytes()
    found = metadata(first)
    assert found["modelspec.architecture"] == "stable-diffusion-v1/lora"
    assert (found["ss_base_model_version"], found["ss_v2"]) == ("sd_v1", "False")
    assert (found["ss_network_dim"], found["ss_network_alpha"]) == ("3", "2")
    assert "modelspec.trigger_phrase" not in found
    recipe = json.loads(found["sd_merge_recipe"])
    assert recipe["type"] == "lcmmerge distill"
    assert recipe["base"] == {"name": "sd1-fp32", "sha256": "0" * 64}
    assert (recipe["objective"]["objective"], recipe["data"], recipe["step"]) == ("lcd", {"name": "squares"}, 4)
    assert str(tmp_path) not in "".join(found.values())


@pytest.mark.parametrize(
    ("kind", "tags", "scheduler"), [("lcd", ["lcm", "lora"], "LCM"), ("diffusion", ["lora"], "DPM")]
)
def test_the_card(kind: str, tags: list[str], scheduler: str, files: Callable[[str], Files], tmp_path: Path) -> None:
    target = tmp_path / "mine.safetensors"
    write_lora(target, trained("sd1"), origin("sd1", files("sd1").folder("fp32"), kind))
    _, front, body = (tmp_path / "mine.md").read_text().split("---\n", 2)
    head = yaml.safe_load(front)
    assert (head["library_name"], head["tags"][: len(tags)]) == ("diffusers", tags)
    assert "base_model" not in head  # a local file is in no repository
    assert 'load_lora_weights("mine.safetensors")' in body
    assert f"scheduler: {scheduler}" in body
    assert str(tmp_path) not in body


def test_the_one_caption_of_a_style_is_its_trigger(files: Callable[[str], Files], tmp_path: Path) -> None:
    said = origin("sd1", files("sd1").folder("fp32"), "diffusion")
    data = {"caption": "a drawing in chalk", "resolution": 320}
    write_lora(tmp_path / "chalk.safetensors", trained("sd1"), replace(said, facts={**said.facts, "data": data}))
    found = metadata(tmp_path / "chalk.safetensors")
    assert (found["modelspec.trigger_phrase"], found["modelspec.resolution"]) == ("a drawing in chalk", "320x320")


def test_an_alpha_that_the_dtype_lacks(files: Callable[[str], Files], tmp_path: Path) -> None:
    """bfloat16 has no 257: the product up @ down · alpha / rank is right all the same."""
    target = tmp_path / "lcm.safetensors"
    found = networks("sd1", rank=2, alpha=257.0)
    write_lora(target, found, origin("sd1", files("sd1").folder("fp32")), dtype=DTYPES["BF16"])
    module, up, down = next(iter(found.factors()))
    stored = load(target)
    key = f"lora_unet_{module.replace('.', '_')}"
    parts = (stored[f"{key}.{role}"].float() for role in ("lora_up.weight", "lora_down.weight", "alpha"))
    read_up, read_down, alpha = parts
    assert torch.allclose(
        alpha * read_up.flatten(1) @ read_down.flatten(1), 257 * up.flatten(1) @ down.flatten(1), rtol=0.02, atol=0.05
    )


def test_nothing_learnt(files: Callable[[str], Files], tmp_path: Path) -> None:
    pipeline = pico("sd1").pipeline
    fresh = LoraNetworks(deepcopy(pipeline.unet), Noise.of(pipeline.scheduler.config), 2, 2.0, seed=0)
    with pytest.raises(NoEffectError, match="no change at all"):
        write_lora(tmp_path / "lcm.safetensors", fresh, origin("sd1", files("sd1").folder("fp32")))
    with pytest.raises(OutputError):
        write_lora(tmp_path / "no" / "lcm.safetensors", trained("sd1"), origin("sd1", files("sd1").folder("fp32")))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", of_each(["sd1", "sdxl"]))
def test_a_whole_pipeline(name: str, files: Callable[[str], Files], tmp_path: Path) -> None:
    pipeline, base = pico(name).pipeline, files(name).folder("fp32")
    noise = Noise.of(pipeline.scheduler.config)
    found = FullNetworks(deepcopy(pipeline.unet), noise, guided=True, taught=True, mu=0.95)
    found.model.time_embedding.cond_proj.weight.data.normal_(generator=torch.Generator().manual_seed(1))
    write_full(tmp_path / "lcm", found, origin(name, base), base, dtype=DTYPES["F32"])
    read = DiffusionPipeline.from_pretrained(tmp_path / "lcm", local_files_only=True)
    assert type(read.scheduler).__name__ == "LCMScheduler"
    assert read.scheduler.config.beta_schedule == "scaled_linear"
    assert read.unet.config.time_cond_proj_dim == 256
    for component in (*pico(name).arch.components,):
        expected = found.model if component == "unet" else getattr(pipeline, component)
        state = getattr(read, component).state_dict()
        assert all(torch.equal(state[key], value) for key, value in expected.state_dict().items()), component
    prompts = {"prompt_embeds": batch_of(name, 1).prompt.hidden}
    if name == "sdxl":
        prompts["pooled_prompt_embeds"] = batch_of(name, 1).prompt.pooled
    read.set_progress_bar_config(disable=True)
    drawn = read(**prompts, num_inference_steps=2, guidance_scale=8.5, output_type="latent", height=64, width=64)
    assert bool(drawn.images.isfinite().all())
    assert (tmp_path / "lcm" / "README.md").read_text().startswith("---\n")

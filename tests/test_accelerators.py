"""The table of acceleration LoRAs, held against diffusers, huggingface_hub and the architectures."""

from __future__ import annotations

import inspect
from pathlib import Path

import diffusers
import pytest
from diffusers import DDIMScheduler, EulerDiscreteScheduler, LCMScheduler, PNDMScheduler
from huggingface_hub import parse_hf_uri
from named import named_source
from pico import pico

from lcmmerge.accelerators import (
    ACCELERATORS,
    ENTRIES,
    OF_THE_MODEL,
    OFFICIAL,
    SCHEDULERS,
    Accelerator,
    Span,
    accelerator,
    by_file,
    by_reference,
    names,
)
from lcmmerge.adapters import AdapterFile, read_adapter
from lcmmerge.archs import architectures, identify, lora_targets
from lcmmerge.errors import NotFoundError
from lcmmerge.tensors import DTYPES, TensorInfo, TensorSource

each = pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
# The configs that the publishers' own pipelines have: Stable Diffusion 1.5's, XL's, and 2.1's with v-prediction.
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
BASES = {
    "sd1": PNDMScheduler(**BETAS, set_alpha_to_one=False, skip_prk_steps=True, steps_offset=1),
    "sd2": DDIMScheduler(**BETAS, clip_sample=False, prediction_type="v_prediction", steps_offset=1),
    "sdxl": EulerDiscreteScheduler(**BETAS, timestep_spacing="leading", steps_offset=1),
}


def test_names_are_unique_and_can_be_typed() -> None:
    assert len(ACCELERATORS) == len(ENTRIES) > 20
    assert all(name == name.lower() and name.replace("-", "").isalnum() for name in ACCELERATORS)


@each
def test_references(entry: Accelerator) -> None:
    assert entry.files.keys() <= architectures().keys()
    for reference in entry.files.values():
        uri = parse_hf_uri(reference)
        assert (uri.type, uri.path_in_repo.endswith(".safetensors")) == ("model", True)
        assert by_reference(reference) is entry
    assert all(source.startswith("https://") for source in entry.sources)
    assert len(entry.sources) > 1


@each
@pytest.mark.parametrize("base", BASES)
def test_diffusers_takes_every_setting(entry: Accelerator, base: str) -> None:
    scheduler = getattr(diffusers, entry.sampling.scheduler)
    config = entry.sampling.config(dict(BASES[base].config))
    assert config.keys() - {"_class_name"} <= inspect.signature(scheduler).parameters.keys()
    made = scheduler.from_config(config)
    for key, value in entry.sampling.settings.items():
        assert made.config[key] == value
    for key in OF_THE_MODEL:
        if key in BASES[base].config:
            assert made.config[key] == BASES[base].config[key]
    made.set_timesteps(int(entry.sampling.steps.default))
    made.set_timesteps(int(entry.sampling.steps.high))
    assert made.timesteps[0] == 999


@each
def test_arguments_are_the_pipelines(entry: Accelerator) -> None:
    for pipeline in (diffusers.StableDiffusionPipeline, diffusers.StableDiffusionXLPipeline):
        assert entry.sampling.arguments.keys() <= inspect.signature(pipeline.__call__).parameters.keys()
    if entry.sampling.arguments:
        scheduler = getattr(diffusers, entry.sampling.scheduler)
        assert entry.sampling.arguments.keys() <= inspect.signature(scheduler.step).parameters.keys()


def test_every_scheduler_of_the_table_is_used() -> None:
    assert {entry.sampling.scheduler for entry in ENTRIES} == SCHEDULERS.keys()


@pytest.mark.parametrize("name", SCHEDULERS)
def test_latents_are_not_clipped(name: str) -> None:
    entry = next(entry for entry in ENTRIES if entry.sampling.scheduler == name)
    made = getattr(diffusers, name).from_config(entry.sampling.config(BETAS))
    assert made.config.get("clip_sample", False) is False


@each
def test_ranges_hold_their_defaults(entry: Accelerator) -> None:
    for span in (entry.sampling.steps, entry.sampling.guidance):
        assert span.low <= span.default <= span.high
    assert entry.sampling.steps.low >= 1


def test_dmd2_draws_at_the_timesteps_that_it_was_trained_at() -> None:
    made = LCMScheduler.from_config(ACCELERATORS["dmd2"].sampling.config(BETAS))
    made.set_timesteps(4)
    assert made.timesteps.tolist() == [999, 749, 499, 249]


def test_trailing_spacing_begins_at_the_noise() -> None:
    made = DDIMScheduler.from_config(ACCELERATORS["hyper-8steps"].sampling.config(dict(BASES["sd1"].config)))
    made.set_timesteps(8)
    assert made.timesteps.tolist() == [999, 874, 749, 624, 499, 374, 249, 124]


def test_as_text() -> None:
    assert str(OFFICIAL.sampling) == "LCMScheduler, 4 steps (2–8), guidance 1 (0–2)"
    assert str(ACCELERATORS["hyper-1step"].sampling) == "TCDScheduler, 1 step (1–8), guidance 0, eta 1"
    lightning = str(ACCELERATORS["lightning-2steps"].sampling)
    assert lightning == "EulerDiscreteScheduler (timestep_spacing trailing), 2 steps, guidance 0"
    assert str(Span.only(7.5)) == "7.5"


def test_a_file_for_each_architecture_or_a_reason() -> None:
    archs = architectures()
    assert OFFICIAL.file(archs["sdxl"]) == "hf://latent-consistency/lcm-lora-sdxl/pytorch_lora_weights.safetensors"
    with pytest.raises(
        NotFoundError, match="SSD-1B: the accelerator tcd has no file for it, only for sd1, sd2, sdxl"
    ) as caught:
        ACCELERATORS["tcd"].file(archs["ssd1b"])
    assert caught.value.hint == "--lcm takes any of lcm, or a file"
    with pytest.raises(NotFoundError) as caught:
        OFFICIAL.file(archs["sdxl_refiner"])
    assert caught.value.hint == "--lcm takes a file"
    assert names(archs["sd2"]) == ("tcd",)


def test_a_mistyped_name() -> None:
    assert accelerator("dmd2").licence == "cc-by-nc-4.0"
    with pytest.raises(NotFoundError) as caught:
        accelerator("hyper-8step")
    assert "did you mean hyper-8steps" in caught.value.hint
    assert by_reference("hf://somebody/else/file.safetensors") is None


def made(name: str, folder: str = "", rank: int = 64, said: str = "", arch: str = "sd1") -> AdapterFile:
    """An adapter with the modules of an official LCM-LoRA, which is nowhere."""
    shapes = {parameter: tuple(tensor.shape) for parameter, tensor in pico(arch).state().items()}
    key = "lora_unet_{}.lora_{}.weight".format
    names = [module.removeprefix("unet.").replace(".", "_") for module in lora_targets(shapes)]
    half, path = DTYPES["F16"], Path(folder, name)
    infos = [TensorInfo(key(name, "down"), half, (rank, 8), path, 0, 0) for name in names]
    infos += [TensorInfo(key(name, "up"), half, (8, rank), path, 0, 0) for name in names]
    metadata = {"sd_merge_recipe": said} if said else {}
    return read_adapter(TensorSource(path, "single-file", {info.name: info for info in infos}, (path,), metadata))


@pytest.mark.parametrize(
    ("file", "known"),
    [
        (made("pytorch_lora_weights.safetensors"), "lcm"),
        (made("LCM_LoRA_SDv15.safetensors"), "lcm"),
        (made("LCM_LoRA_SDv15.safetensors", rank=32), None),
        (made("style.safetensors"), None),
        (made("pcm_lcmlike.safetensors"), None),
        (made("pcm_sd15_lcmlike_lora_converted.safetensors"), "pcm-lcm"),
        (made("Hyper-SD15-8steps-lora.safetensors", rank=8), "hyper-8steps"),
        (made("pytorch_lora_weights.safetensors", "TCD-SD15-LoRA"), "tcd"),
        (made("pytorch_lora_weights.safetensors", "flash-sd"), "flash-sd"),
        (made("pytorch_lora_weights.safetensors", rank=16), None),
        (made("mine.safetensors", rank=4, said='{"type": "lcmmerge distill"}'), "lcm"),
        (made("mine.safetensors", said='{"type": "lcmmerge train-style"}'), None),
        (made("mine.safetensors", said="["), None),
    ],
    ids=lambda value: value.source.path.as_posix() if isinstance(value, AdapterFile) else str(value),
)
def test_a_file_is_known_by_names_modules_and_metadata(file: AdapterFile, known: str | None) -> None:
    shapes = {parameter: tuple(tensor.shape) for parameter, tensor in pico("sd1").state().items()}
    found = by_file(file, identify(named_source(shapes, "diffusers")))
    assert (found.name if found else None) == known

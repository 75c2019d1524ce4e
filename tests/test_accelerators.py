"""The table of acceleration LoRAs, held against diffusers, huggingface_hub and the architectures."""

from __future__ import annotations

import inspect
from dataclasses import replace
from math import exp
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    LCMScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)
from diffusers.pipelines.ltx2.utils import DISTILLED_SIGMA_VALUES
from diffusers.pipelines.qwenimage.pipeline_qwenimage import calculate_shift
from huggingface_hub import parse_hf_uri
from named import named_source
from pico import pico

from lcmmerge import registry
from lcmmerge.accelerators import (
    ACCELERATORS,
    OF_THE_FLOW,
    OF_THE_MODEL,
    OFFICIAL,
    SCHEDULERS,
    Accelerator,
    Span,
    accelerator,
    bases,
    by_file,
    by_name,
    by_reference,
    file_of,
    names,
    usual_strength,
)
from lcmmerge.adapters import AdapterFile, read_adapter
from lcmmerge.archs import architectures, identify, lora_targets
from lcmmerge.errors import NotFoundError
from lcmmerge.tensors import DTYPES, TensorInfo, TensorSource

ENTRIES = tuple(ACCELERATORS.values())
FLOWS = tuple(entry for entry in ENTRIES if entry.sampling.predicts == "flow")
each = pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
# The configs that the publishers' own pipelines have: Stable Diffusion 1.5's, XL's, and 2.1's with v-prediction.
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
BASES = {
    "sd1": PNDMScheduler(**BETAS, set_alpha_to_one=False, skip_prk_steps=True, steps_offset=1),
    "sd2": DDIMScheduler(**BETAS, clip_sample=False, prediction_type="v_prediction", steps_offset=1),
    "sdxl": EulerDiscreteScheduler(**BETAS, timestep_spacing="leading", steps_offset=1),
}
# And of flows: FLUX.1-dev's, Qwen-Image's, Z-Image's and SD 3's, and Wan's.
WAN = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
FLOW_BASES = {
    "flux1": FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15),
    "qwen_image": FlowMatchEulerDiscreteScheduler(
        shift=1.0, use_dynamic_shifting=True, base_shift=0.5, max_shift=0.9, shift_terminal=0.02
    ),
    "z_image": FlowMatchEulerDiscreteScheduler(shift=3.0),
    "wan": WAN,
}


def test_names_are_unique_and_can_be_typed() -> None:
    tables = registry.entries("lcmmerge.accelerators", "ENTRIES")
    assert len(ENTRIES) == sum(map(len, tables.values())) > 50
    assert all(name == name.lower() and name.replace("-", "").isalnum() for name in ACCELERATORS)


@each
def test_references(entry: Accelerator) -> None:
    for reference in entry.references:
        uri = parse_hf_uri(reference)
        assert uri.type == "model"
        assert (uri.path_in_repo or "").endswith(".safetensors") or "file" in entry.unverified
        assert by_reference(reference) is entry
    assert entry.sources
    assert all(source.startswith("https://") for source in entry.sources)


@each
def test_licences(entry: Accelerator) -> None:
    """What forbids or asks anything is said with the licence that does."""
    assert entry.licence or "licence" in entry.unverified or not (entry.restriction or entry.duty)
    said = entry.obligations
    assert bool(said) == bool(entry.restriction or entry.duty)
    assert not said or said.startswith(f"{entry.name} is under {entry.licence}: ")


def test_bases_are_registered() -> None:
    assert bases()
    assert set(bases()) <= architectures().keys()


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("entry", [entry for entry in ENTRIES if entry not in FLOWS], ids=lambda entry: entry.name)
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


def config_of(entry: Accelerator) -> dict[str, Any]:
    """That of its base, where there is one here, changed for it."""
    arch = next(iter(entry.files))
    base = dict(FLOW_BASES.get(arch, FLOW_BASES["qwen_image"]).config)
    return entry.sampling.config({"_class_name": "?", **base})


def schedule(entry: Accelerator, pixels: int = 1024) -> Any:
    """The scheduler that a folder gets, asked as the base's pipeline asks it for an image of a size."""
    config = config_of(entry)
    kind = getattr(diffusers, entry.sampling.scheduler)
    assert config.keys() - {"_class_name"} <= inspect.signature(kind).parameters.keys()
    made, steps = kind.from_config(config), int(entry.sampling.steps.default)
    if kind is not FlowMatchEulerDiscreteScheduler:
        made.set_timesteps(steps)
        return made
    held = made.config
    mu = calculate_shift(
        (pixels // 16) ** 2, held.base_image_seq_len, held.max_image_seq_len, held.base_shift, held.max_shift
    )
    made.set_timesteps(sigmas=list(entry.sampling.sigmas) or np.linspace(1, 1 / steps, steps).tolist(), mu=mu)
    return made


@pytest.mark.parametrize(
    "entry", [entry for entry in FLOWS if entry.sampling.settings], ids=lambda entry: entry.name
)
@pytest.mark.parametrize("pixels", [256, 1024])
def test_diffusers_draws_at_the_entry_s_sigmas(entry: Accelerator, pixels: int) -> None:
    made, sampling = schedule(entry, pixels), entry.sampling
    held, steps = sampling.settings, int(sampling.steps.default)
    shift = exp(held["max_shift"]) if "max_shift" in held else held.get("shift", held.get("flow_shift"))
    linear = np.linspace(1, 1 / steps, steps)
    expected = np.array(sampling.sigmas) if sampling.sigmas else shift * linear / (1 + (shift - 1) * linear)
    assert made.sigmas[:-1].numpy() == pytest.approx(expected, abs=1.5e-3 if "flow_shift" in held else 1e-6)
    assert made.sigmas[-1] == 0


@pytest.mark.parametrize(
    "entry", [entry for entry in FLOWS if not entry.sampling.settings], ids=lambda entry: entry.name
)
def test_a_base_s_shift_stays_where_an_entry_has_none(entry: Accelerator) -> None:
    for base in ("flux1", "qwen_image", "z_image"):
        own = dict(FLOW_BASES[base].config)
        config = entry.sampling.config(own)
        assert {key: own[key] for key in OF_THE_FLOW[entry.sampling.scheduler]}.items() <= config.items()


def test_wan_s_first_order_solver_is_euler() -> None:
    made = schedule(ACCELERATORS["wan21-t2v-4steps"])
    x = y = torch.randn(8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for step, time in enumerate(made.timesteps):
        velocity = torch.sin(3 * x) * (1 + step)
        y = x + (made.sigmas[step + 1] - made.sigmas[step]) * velocity
        x = made.step(velocity, time, x).prev_sample
        assert torch.allclose(x, y, atol=1e-5)


@pytest.mark.parametrize("entry", [entry for entry in FLOWS if entry.sampling.boundary], ids=lambda entry: entry.name)
def test_each_expert_draws_two_of_four_steps(entry: Accelerator) -> None:
    assert entry.sampling.boundary
    first = schedule(entry).timesteps >= entry.sampling.boundary * 1000
    assert first.tolist() == [True, True, False, False]
    (pair,) = entry.files.values()
    assert not isinstance(pair, str)
    assert list(pair) == ["transformer", "transformer_2"]
    assert ["high" in pair["transformer"], "low" in pair["transformer_2"]] == [True, True]


def test_sigmas_are_the_pipelines() -> None:
    for pipeline in (diffusers.Flux2Pipeline, diffusers.LTX2Pipeline):
        assert "sigmas" in inspect.signature(pipeline.__call__).parameters
    assert list(ACCELERATORS["ltx2-distilled"].sampling.sigmas) == DISTILLED_SIGMA_VALUES


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
    for span in (entry.sampling.steps, entry.sampling.guidance, entry.strength):
        assert span.low <= span.default <= span.high
    assert entry.sampling.steps.low >= 1
    assert entry.strength.low > 0
    if entry.sampling.sigmas:
        assert len(entry.sampling.sigmas) == entry.sampling.steps.default


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
    flux = str(ACCELERATORS["hyperflux-8steps"].sampling)
    assert flux == "FlowMatchEulerDiscreteScheduler, 8 steps, guidance 3.5, embedded"
    assert str(ACCELERATORS["wan22-t2v-4steps"].sampling).endswith("4 steps, guidance 1, boundary 0.875")
    assert "sigmas 1 0.6509 0.4374 0.2932 0.1893 0.1108 0.0495 0.00031" in str(ACCELERATORS["flux2-turbo"].sampling)


@pytest.mark.parametrize(
    ("name", "reference", "strength"),
    [
        ("hyperflux-8steps", None, 0.125),
        (None, "hf://ByteDance/Hyper-SD/Hyper-FLUX.1-dev-8steps-lora.safetensors", 0.125),
        (None, "here/Hyper-FLUX.1-dev-16steps-lora.safetensors", 0.125),
        ("lcm", "here/Hyper-FLUX.1-dev-16steps-lora.safetensors", 1),
        (None, "here/style.safetensors", 1),
        (None, "diffusion_pytorch_model.safetensors", 1),
        (None, "Z-Image-Fun-Lora-Distill-8-Steps-2603.safetensors", 0.8),
        (None, None, 1),
    ],
)
def test_usual_strengths(name: str | None, reference: str | None, strength: float) -> None:
    kind = ACCELERATORS[name] if name else None
    assert usual_strength(kind, reference) == strength


def test_common_file_names_tell_nothing_without_their_folders() -> None:
    assert by_name(Path("diffusion_pytorch_model.safetensors")) is None
    assert by_name(Path("FLUX.1-Turbo-Alpha/diffusion_pytorch_model.safetensors")) is ACCELERATORS["flux-turbo-alpha"]


def test_a_file_for_each_architecture_or_a_reason() -> None:
    archs = architectures()
    assert file_of(OFFICIAL, archs["sdxl"]) == "hf://latent-consistency/lcm-lora-sdxl/pytorch_lora_weights.safetensors"
    with pytest.raises(
        NotFoundError, match="SSD-1B: the accelerator tcd has no file for it, only for sd1, sd2, sdxl"
    ) as caught:
        file_of(ACCELERATORS["tcd"], archs["ssd1b"])
    assert caught.value.hint == "--accelerator takes any of lcm, or a file"
    with pytest.raises(NotFoundError) as caught:
        file_of(OFFICIAL, archs["sdxl_refiner"])
    assert caught.value.hint == "--accelerator takes a file"
    wan = replace(archs["qwen_image"], name="wan", title="Wan")
    with pytest.raises(NotFoundError, match="wan22-t2v-4steps is a pair of files") as caught:
        file_of(ACCELERATORS["wan22-t2v-4steps"], wan)
    assert "transformer_2 hf://lightx2v/Wan2.2-Distill-Loras/" in (caught.value.hint or "")
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

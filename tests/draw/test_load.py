"""Every layout as modules; diffusers' own loading is the oracle."""

import json
import shutil

import huggingface_hub
import numpy as np
import pytest
import torch
from diffusers import LCMScheduler, UNet2DConditionModel
from fusing import edited
from pico import TINY, UNETS, pico
from safetensors.torch import load_file, save_file
from sampling import assert_alike, by_diffusers, drawn, images, one, pipeline, preset
from tiers import of_each

from lcmmerge.archs import identify
from lcmmerge.draw import drawable, load
from lcmmerge.errors import FormatError, IncompatibleError, LcmMergeError, NotFoundError, ShapeMismatchError
from lcmmerge.tensors import open_source

NEGATIVE = {"sd1": "", "sd2": "a hat", "sdxl": "", "ssd1b": "a hat"}  # "" is ∅, which SDXL and SD encode differently


@pytest.mark.parametrize("name", of_each(NEGATIVE))
def test_images_are_those_of_diffusers(name, files):
    """From a folder and from a single file."""
    inputs, job = files(name), one(negative=NEGATIVE[name])
    expected = by_diffusers(inputs.folder(), job, num_inference_steps=2, guidance_scale=5.0)
    chosen = preset(inputs.folder(), guidance=5.0)
    for source in (inputs.folder(), inputs.base()):
        found = images(drawn(pipeline(source, inputs.folder()), [job], chosen))
        assert_alike(found, expected)


def test_components_are_ready_to_draw(files):
    inputs = files("sdxl")
    found = load.load_components(identify(open_source(inputs.base())), inputs.folder(), torch.bfloat16)
    assert set(found) == {
        "unet", "vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "scheduler"
    }  # fmt: skip
    for name in ("unet", "vae", "text_encoder", "text_encoder_2"):
        module = found[name]
        assert not module.training
        assert {parameter.dtype for parameter in module.parameters()} == {torch.bfloat16}
        assert not any(parameter.requires_grad for parameter in module.parameters())
        assert not any(tensor.is_meta for tensor in (*module.parameters(), *module.buffers()))


@pytest.fixture
def full_lcm(tmp_path):
    """A consistency model that is told the guidance."""
    base = pico("sd1").pipeline
    torch.manual_seed(0)
    base = type(base)(**base.components, requires_safety_checker=False)
    base.unet = UNet2DConditionModel(**(TINY | UNETS["sd1"]), time_cond_proj_dim=16)
    base.scheduler = LCMScheduler.from_config(base.scheduler.config)
    base.save_pretrained(tmp_path / "lcm")
    return tmp_path / "lcm"


def test_a_full_lcm_embeds_the_guidance(full_lcm):
    chosen = preset(full_lcm)
    assert (chosen.scheduler, chosen.guidance) == ("LCMScheduler", 8.5)
    expected = by_diffusers(full_lcm, one(), num_inference_steps=2, guidance_scale=8.5)
    pipe = pipeline(full_lcm)
    assert_alike(images(drawn(pipe, [one()], chosen)), expected)
    off = [images(drawn(pipe, [one()], preset(full_lcm, guidance=guidance))) for guidance in (0, 1)]
    assert np.array_equal(*off)
    assert not np.array_equal(off[0], expected)


def test_native_size(files, tmp_path):
    folder = files("sd1").folder()
    assert drawable.native_size(folder) == (64, 64)
    other = shutil.copytree(folder, tmp_path / "other")
    change(other / "unet" / "config.json", sample_size=[8, 16])
    assert drawable.native_size(other) == (128, 64)
    change(other / "unet" / "config.json", sample_size="large")
    with pytest.raises(FormatError, match="at what size"):
        drawable.native_size(other)


def change(config, **facts):
    config.write_text(json.dumps(json.loads(config.read_text()) | facts))


@pytest.mark.parametrize("name", ["sdxl_refiner", "sd1-inpainting"])
def test_what_draws_from_an_image_is_refused(name, tmp_path):
    path = pico(name).single_file(tmp_path / "model.safetensors")
    with pytest.raises(IncompatibleError, match="not from a text alone") as refused:
        load.open_model(str(path))
    assert refused.value.exit_code == 3


@pytest.mark.parametrize(
    ("prefix", "cause"),
    [
        ("cond_stage_model.", "has no text_encoder"),
        ("first_stage_model.", "has no vae"),
        ("first_stage_model.decoder.conv_in.", "lacks 2 tensors, the first of them 'vae.decoder.conv_in.weight'"),
    ],
)
def test_what_lacks_a_part_is_refused(prefix, cause, files, tmp_path):
    tensors = load_file(files("sd1").base())
    kept = {name: tensor for name, tensor in tensors.items() if not name.startswith(prefix)}
    save_file(kept, tmp_path / "part.safetensors")
    with pytest.raises(IncompatibleError, match=cause):
        load.open_model(str(tmp_path / "part.safetensors"))


def test_configs_that_do_not_fit_are_refused(files, tmp_path):
    inputs = files("sd1")
    folder = shutil.copytree(inputs.folder(), tmp_path / "configs")
    change(folder / "text_encoder" / "config.json", intermediate_size=64)
    with pytest.raises(ShapeMismatchError, match=r"text_encoder.*mlp\.fc1\.bias: \[32\], by the configs \[64\]"):
        pipeline(inputs.base(), folder)
    (folder / "text_encoder" / "config.json").write_text("{")
    with pytest.raises(FormatError, match="describes no text_encoder"):
        pipeline(inputs.base(), folder)
    shutil.rmtree(folder / "tokenizer")
    with pytest.raises(NotFoundError, match="holds no CLIP tokenizer"):
        pipeline(inputs.base(), folder)
    change(folder / "scheduler" / "scheduler_config.json", _class_name="DiffusionPipeline")
    with pytest.raises(FormatError, match="no such scheduler"):
        pipeline(inputs.base(), folder)


@pytest.mark.parametrize(("file", "field", "value"), [
    ("unet/config.json", "freq_shift", "4"),
    ("unet/config.json", "_diffusers_version", [1, 2]),
    ("vae/config.json", "scaling_factor", [1, 2]),
    ("vae/config.json", "scaling_factor", 0),
    ("text_encoder/config.json", "num_hidden_layers", 10**6),
    ("tokenizer/tokenizer_config.json", "model_max_length", "long"),
    ("scheduler/scheduler_config.json", "prediction_type", [1, 2]),
    ("scheduler/scheduler_config.json", "num_train_timesteps", 1),
    ("scheduler/scheduler_config.json", "trained_betas", [1, 2]),
])  # fmt: skip
def test_a_damaged_config_is_one_line(file, field, value, files, tmp_path):
    folder = tmp_path / "base"
    shutil.copytree(files("sd1").folder(), folder)
    damaged = folder / file
    damaged.write_text(json.dumps(json.loads(damaged.read_text()) | {field: value}))
    with pytest.raises(LcmMergeError) as caught:
        drawn(pipeline(folder), [one()], preset(folder))
    assert caught.value.hint
    assert "\n" not in caught.value.message


def test_a_shape_of_our_own_is_seen(files, tmp_path):
    name = "first_stage_model.decoder.conv_out.bias"
    path = edited(files("sd1").base(), tmp_path / "odd.safetensors", **{name: torch.zeros(4)})
    with pytest.raises(ShapeMismatchError, match=r"1 parameters .* vae\.decoder\.conv_out\.bias: \[4\]"):
        pipeline(path, files("sd1").folder())


def test_a_single_file_alone_needs_the_hub(files, tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(NotFoundError, match=r"stable-diffusion-v1-5.*HF_HUB_OFFLINE") as refused:
        drawable.configs_of(load.open_model(str(files("sd1").base())))
    assert refused.value.hint


def test_device_and_dtype():
    assert load.pick_device("cpu", None) == (torch.device("cpu"), torch.float32)
    assert load.pick_device("cpu", "bf16") == (torch.device("cpu"), torch.bfloat16)
    with pytest.raises(LcmMergeError, match="there is none here"):
        load.pick_device("cuda:99", None)

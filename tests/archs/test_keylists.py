"""Third parties' lists of names and shapes, from the folder that LCMMERGE_KEYLISTS names; skipped without it."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
from accelerate import init_empty_weights
from diffusers import AnimaTextConditioner
from families import published
from named import named_source
from published import shapes
from transformers import Qwen3Config, Qwen3Model

from lcmmerge.adapters import algorithm, read_adapter
from lcmmerge.archs import (
    architectures,
    guess_architecture,
    identify,
    is_ema,
    likely_architectures,
    lora_targets,
    names_of,
    tiles,
)
from lcmmerge.archs.names import ModuleNames
from lcmmerge.errors import UnknownArchitectureError
from lcmmerge.terms.match import read_content

FOLDER = os.environ.get("LCMMERGE_KEYLISTS", "")
pytestmark = pytest.mark.skipif(not FOLDER, reason="LCMMERGE_KEYLISTS names no folder")

Shapes = dict[str, tuple[int, ...]]

# What checkpoints carry beside their parameters.
SCHEDULES = re.compile(
    r"(alphas_cumprod|alphas_cumprod_prev|betas|log_one_minus_alphas_cumprod|posterior_\w+|sqrt_\w+"
    r"|edm_vpred\.sigma_(max|min)|v_pred|ztsnr|.+\.position_ids|.+\.logit_scale)"
)
SD2_UNUSED = re.compile(r"cond_stage_model\.model\.(text_projection|transformer\.resblocks\.23\..+)")


def read_yaml(name: str) -> Shapes:
    line = re.compile(r"^    (\S+): \{shape: \[([\d, ]*)\]", re.MULTILINE)
    text = Path(FOLDER, name).read_text("utf-8")
    return {key: tuple(map(int, filter(None, shape.split(", ")))) for key, shape in line.findall(text)}


def read_text(name: str, prefix: str = "") -> Shapes:
    lines = (line.split() for line in Path(FOLDER, name).read_text("utf-8").splitlines())
    return {prefix + key: tuple(json.loads(shape)) for key, shape in lines}


def read_json(name: str) -> Shapes:
    return {key: tuple(shape) for key, shape in json.loads(Path(FOLDER, name).read_text("utf-8")).items()}


def test_sd1_single_file() -> None:
    agrees("sd1", read_yaml("sd1-ldm.yaml"), 1818)


def test_sd2_single_file() -> None:
    unet = read_text("UNET-v2-SD.txt", "model.diffusion_model.")
    text_encoder = read_text("CLIP-v2-SD.txt", "cond_stage_model.model.")
    agrees("sd2", unet | text_encoder, 686 + 294, components=("unet", "text_encoder"))


def test_sdxl_single_file() -> None:
    agrees("sdxl", read_yaml("sdxl-sgm.yaml"), 2500)


def agrees(name: str, listed: Shapes, at_least: int, components: tuple[str, ...] | None = None) -> None:
    """Each listed tensor is a parameter of the real model in its real shape, or a known leftover; none is missing."""
    assert len(listed) >= at_least
    arch = architectures()[name]
    components = components or arch.components
    found = identify(named_source(listed))
    assert found.arch == arch and found.components == components
    real = {key: shape for key, shape in shapes(name).items() if key.partition(".")[0] in components}
    assert {key: parameter.shape for key, parameter in found.parameters.items()} == real
    keymap = arch.keymap("single-file")
    assert all(keymap.slots[p.name].stored == p.slot.stored == p.info.name for p in found.parameters.values())
    strange = [
        key
        for key in found.leftovers
        if not is_ema(key) and not SCHEDULES.fullmatch(key) and not SD2_UNUSED.fullmatch(key)
    ]
    assert strange == []


@pytest.mark.parametrize(
    ("file", "name", "modules"),
    [
        ("lcm-lora-sdv1-5.keys.json", "sd1", 278),
        ("lcm-lora-sdxl.keys.json", "sdxl", 788),
        ("lcm-lora-ssd-1b.keys.json", "ssd1b", 423),
    ],
)
def test_official_lcm_loras(file: str, name: str, modules: int) -> None:
    listed = read_json(file)
    homes = fits(name, listed)
    assert homes == lora_targets(shapes(name)).keys() and len(homes) == modules
    guess = guess_architecture(keys(listed))
    assert guess is not None and architectures()[name].title in guess


def test_a_kohya_lora_of_sd1s_attention() -> None:
    homes = fits("sd1", read_text("LoRA-v1A-UNET.txt"))
    assert homes == {home for home in lora_targets(shapes("sd1")) if ".attentions." in home}


def test_sdxl_lcm_lora_does_not_fit_ssd_1b() -> None:
    listed = keys(read_json("lcm-lora-sdxl.keys.json"))
    names = names_of(architectures()["ssd1b"])
    assert 0 < len([key for key in listed if names.find(key) is None]) < len(listed)
    assert guess_architecture(listed) == "Stable Diffusion XL"


def test_ssd_1bs_unet() -> None:
    listed = {f"unet.{key}": shape for key, shape in read_json("ssd-1b.unet-weights.diffusers.json").items()}
    real = {k: s for k, s in shapes("ssd1b").items() if k.startswith("unet.") and k.endswith(".weight")}
    assert listed == real
    assert listed.keys() <= architectures()["ssd1b"].keymap("diffusers").slots.keys()


# file → the family of the base that it is for
TRANSFORMERS = {
    "flux-lora-kohya": "flux1",
    "flux-lora-aitoolkit": "flux1",
    "flux-lora-diffusers": "flux1",
    "flux-lora-diffusers-no-proj-mlp": "flux1",
    "flux-lora-diffusers-base-model": "flux1",
    "flux-lora-xlabs": "flux1",
    "flux-lokr-bfl": "flux1",
    "krea2-lora-kohya": "krea2",
    "qwen-image-lora-diffusers": "qwen_image",
}


@pytest.mark.parametrize("file", TRANSFORMERS)
def test_every_module_of_a_transformers_adapter_fits_its_home(file: str) -> None:
    listed = read_json(f"{file}.keys.json")
    name = TRANSFORMERS[file]
    adapter = read_adapter(named_source(listed))
    assert adapter.patches and not adapter.unknown and not adapter.embeddings
    real = {f"transformer.{key}": tuple(tensor.shape) for key, tensor in published(name).state_dict().items()}
    for patch in adapter.patches:
        home = names_of(architectures()[name]).find(patch.key)
        assert home, patch.key
        made = tiles([view for _, view in home.parts], [real[f"{module}.weight"] for module, _ in home.parts])
        invented = file == "flux-lokr-bfl"  # its names are a published file's, its shapes are nobody's
        assert made and (invented or algorithm(patch)[1].fit(patch, made[0]) == ""), patch.key
    assert name in [arch.name for arch in likely_architectures(adapter.modules)]


def test_a_control_lora_is_refused_by_name() -> None:
    with pytest.raises(UnknownArchitectureError, match=r"a control LoRA of FLUX\.1"):
        read_content(named_source(read_json("flux-control-lora.keys.json")))


@pytest.mark.parametrize(("file", "name"), [("flux2-bfl", "flux2"), ("z-image-comfyui", "z_image")])
def test_names_of_a_transformers_single_file(file: str, name: str) -> None:
    """The lists have the first block of each kind; FLUX.2's is klein 9B, without guidance."""
    listed = read_json(f"{file}.base.keys.json")
    keymap, begin = architectures()[name].keymap("single-file"), architectures()[name].denoiser.stored
    strange = [key for key in listed if not keymap.read(begin + key)]
    assert strange == (["norm_final.weight"] if name == "z_image" else [])
    assert all(slot.view.splits(listed[key]) for key in listed for slot in keymap.read(begin + key))


def test_names_of_animas_single_file() -> None:
    """All of its text conditioner, and the denoiser's first block."""
    listed = read_json("anima-comfyui.base.keys.json")
    model = identify(named_source(listed))
    assert (model.layout, model.components) == ("component", ("transformer", "text_conditioner"))
    assert len(model.parameters) == len(listed) and not model.leftovers and not model.missing
    with init_empty_weights():
        real = {f"text_conditioner.{key}": tuple(t.shape) for key, t in AnimaTextConditioner().state_dict().items()}
    assert {key: shape for key, shape in model.shapes.items() if key.startswith("text_conditioner.")} == real


@pytest.mark.parametrize("file", ["anima-lora-kohya", "anima-lora-peft"])
def test_animas_adapters_are_cosmos_predict_2s(file: str) -> None:
    """By names: the lists have the text's width where the image's is."""
    modules = read_adapter(named_source(read_json(f"{file}.keys.json"))).modules
    assert not [key for key in modules if names_of(architectures()["cosmos2"]).find(key) is None]


def test_an_anima_adapter_of_its_text_encoder_too() -> None:
    modules = read_adapter(named_source(read_json("anima-lora-kohya-with-te.keys.json"))).modules
    with init_empty_weights():
        kept = [f"text_encoder.{key}" for key in Qwen3Model(Qwen3Config(num_hidden_layers=28)).state_dict()]
    names = ModuleNames(architectures()["cosmos2"], kept)
    homes = {key: home.module for key in modules if (home := names.find(key))}
    assert len(homes) == len(modules) == len(set(homes.values()))
    assert {home.partition(".")[0] for home in homes.values()} == {"transformer", "text_encoder"}


def keys(listed: Shapes) -> set[str]:
    return {re.sub(r"\.(lora_(down|up)\.weight|alpha)$", "", key) for key in listed}


def fits(name: str, listed: Shapes) -> set[str]:
    """The homes of all listed LoRA modules, after a look at their shapes."""
    real = shapes(name)
    names = names_of(architectures()[name])
    homes = {key: home.module for key in keys(listed) if (home := names.find(key))}
    for key in keys(listed):
        out, *rest = real[f"{homes[key]}.weight"]
        assert listed[f"{key}.lora_up.weight"][0] == out
        assert listed[f"{key}.lora_down.weight"][1:] == tuple(rest)
    return set(homes.values())

"""A fuse equals what diffusers and PEFT make of the same files: load_lora_weights, set_adapters, fuse_lora."""

import copy

import pytest
import torch
from diffusers.utils import convert_state_dict_to_diffusers
from fusing import canonical, fuse, load
from peft import LoraConfig, get_peft_model_state_dict
from pico import TORCH, PicoModel, pico
from tiers import of_each

ARCHITECTURES = ("sd1", "sd2", "sdxl", "ssd1b")
LAMBDAS = (0.8, 1.0)
TEXT = ["q_proj", "k_proj", "v_proj", "out_proj"]
UNET = ["to_q", "to_k", "to_v", "to_out.0", "proj_in", "ff.net.2", "conv1", "time_emb_proj"]


def components(pipeline):
    return [name for name in pipeline._lora_loadable_modules if getattr(pipeline, name, None) is not None]


def fuse_with_peft(pipeline, adapters):
    """``adapters``: name → (file, λ)."""
    for name, (path, _) in adapters.items():
        pipeline.load_lora_weights(str(path), adapter_name=name)
    pipeline.set_adapters(list(adapters), [strength for _, strength in adapters.values()])
    pipeline.fuse_lora(components=components(pipeline))
    pipeline.unload_lora_weights()


@pytest.mark.slow("PEFT fuses a whole pipeline")
@pytest.mark.parametrize("name", of_each(ARCHITECTURES))
def test_float32_equals_peft_in_both_layouts(name, files, tmp_path):
    inputs, model = files(name), pico(name)
    pipeline = copy.deepcopy(model.pipeline)
    fuse_with_peft(pipeline, {"style": (inputs.style, LAMBDAS[0]), "lcm": (inputs.lcm, LAMBDAS[1])})
    fused = PicoModel(model.arch, pipeline)
    single_file = fused.single_file(tmp_path / "peft.safetensors", "fp32"), tmp_path / "ours.safetensors"
    folder = fused.folder(tmp_path / "peft", "fp32"), tmp_path / "ours"
    for base, (theirs, ours) in ((inputs.base("fp32"), single_file), (inputs.folder("fp32"), folder)):
        fuse(base, ours, inputs.style, inputs.lcm, LAMBDAS)
        found, expected, untouched = canonical(ours), canonical(theirs), canonical(base)
        assert found.keys() == expected.keys() == untouched.keys()
        changed = [key for key in found if not torch.equal(found[key], untouched[key])]
        assert changed == [key for key in found if not torch.equal(expected[key], untouched[key])]
        for key in changed:
            assert (found[key] - expected[key]).norm() <= 1e-6 * expected[key].norm(), key


@pytest.mark.parametrize(("name", "dtype"), [("sd1", "fp16"), pytest.param("ssd1b", "bf16", marks=pytest.mark.e2e)])
def test_half_precision_is_the_float32_result_rounded_within_one_unit(name, dtype, files, tmp_path):
    """PEFT fuses in float32 here, from the same rounded base; only the last bit may differ.

    Where terms cancel, the float32 sums' own difference is more than a unit of the small result.
    """
    inputs = files(name)
    model = pico(name)
    pipeline = copy.deepcopy(model.pipeline)
    for part in components(pipeline):
        getattr(pipeline, part).to(TORCH[dtype]).float()
    fuse_with_peft(pipeline, {"style": (inputs.style, LAMBDAS[0]), "lcm": (inputs.lcm, LAMBDAS[1])})
    expected = load(PicoModel(model.arch, pipeline).single_file(tmp_path / "peft.safetensors", dtype))
    fuse(inputs.base(dtype), tmp_path / "ours.safetensors", inputs.style, inputs.lcm, LAMBDAS)
    found = load(tmp_path / "ours.safetensors")
    assert found.keys() == expected.keys()
    wrong = 0
    for key, tensor in found.items():
        steps = (order(tensor) - order(expected[key])).abs()
        assert tensor.dtype == TORCH[dtype]
        apart = (tensor.float() - expected[key].float()).abs()
        assert ((steps <= 1) | (apart <= 1e-8)).all(), key
        wrong += int((steps > 0).sum())
    assert wrong <= 0.001 * sum(tensor.numel() for tensor in found.values())


def order(tensor):
    """The place of each half-precision number among all of them; −0 and 0 share one."""
    bits = tensor.view(torch.int16).int()
    return torch.where(bits < 0, -(bits & 0x7FFF), bits)


@pytest.mark.parametrize("name", of_each(["sd1", "sdxl"]))
def test_a_file_that_diffusers_saved(name, files, tmp_path):
    """save_lora_weights: PEFT's tensors with diffusers' names, rank and alpha in the metadata."""
    model = pico(name)
    pipeline = copy.deepcopy(model.pipeline)
    layers = {}
    for seed, part in enumerate(components(pipeline)):
        config = LoraConfig(r=3, lora_alpha=5, target_modules=UNET if part == "unet" else TEXT, init_lora_weights=False)
        module = getattr(pipeline, part)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            module.add_adapter(config, "style")
        layers[f"{part}_lora_layers"] = convert_state_dict_to_diffusers(
            get_peft_model_state_dict(module, adapter_name="style")
        )
        layers[f"{part}_lora_adapter_metadata"] = module.peft_config["style"].to_dict()
    type(pipeline).save_lora_weights(tmp_path, **layers)
    pipeline.set_adapters(["style"], [0.7])
    pipeline.fuse_lora(components=components(pipeline))
    pipeline.unload_lora_weights()

    fuse(
        files(name).base("fp32"),
        tmp_path / "ours.safetensors",
        tmp_path / "pytorch_lora_weights.safetensors",
        strengths=(0.7, 0),
    )
    expected = load(PicoModel(model.arch, pipeline).single_file(tmp_path / "peft.safetensors", "fp32"))
    found, base = load(tmp_path / "ours.safetensors"), load(files(name).base("fp32"))
    assert sum(not torch.equal(found[key], base[key]) for key in found) > 100
    for key, tensor in expected.items():
        assert (found[key] - tensor).norm() <= 1e-6 * tensor.norm(), key

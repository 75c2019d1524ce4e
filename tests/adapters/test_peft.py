"""What merging makes of a file that PEFT saved is what PEFT's own merge makes of it."""

import copy

import pytest
import torch
from adapterfile import assert_near, delta, merged, write
from diffusers.loaders import StableDiffusionXLLoraLoaderMixin
from peft import (
    BOFTConfig,
    IA3Config,
    LoHaConfig,
    LoKrConfig,
    LoraConfig,
    OFTConfig,
    get_peft_model,
    get_peft_model_state_dict,
)
from peft.tuners.boft.layer import Linear as BOFTLinear
from safetensors.torch import load_file, save_file
from torch import nn

from lcmmerge.adapters import read_adapter
from lcmmerge.errors import FormatError, IncompatibleError
from lcmmerge.tensors import open_source


class Pico(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(12, 8)
        self.unbiased = nn.Linear(12, 12, bias=False)
        self.conv1 = nn.Conv2d(12, 8, 1)
        self.conv3 = nn.Conv2d(4, 8, 3)


ALL = ["linear", "unbiased", "conv1", "conv3"]
CONFIGS = {
    "lora": LoraConfig(r=3, lora_alpha=5, target_modules=ALL),
    "rslora": LoraConfig(r=3, lora_alpha=5, use_rslora=True, target_modules=ALL),
    "patterns": LoraConfig(
        r=3,
        lora_alpha=5,
        rank_pattern={"conv3": 2},
        alpha_pattern={"conv.": 7, "linear": 2},
        target_modules=ALL,
    ),
    "dora": LoraConfig(r=3, lora_alpha=5, use_dora=True, target_modules=ALL),
    "lora bias": LoraConfig(r=3, lora_alpha=5, lora_bias=True, target_modules=["linear", "conv3"]),
    "loha": LoHaConfig(r=3, alpha=5, target_modules=ALL),
    "loha tucker": LoHaConfig(r=3, alpha=5, use_effective_conv2d=True, target_modules=ALL),
    "lokr": LoKrConfig(r=2, alpha=5, decompose_factor=2, target_modules=["linear", "unbiased", "conv1"]),
    "lokr both": LoKrConfig(r=1, alpha=5, decompose_both=True, decompose_factor=4, target_modules=ALL),
    "lokr whole": LoKrConfig(r=16, alpha=5, target_modules=ALL),
    "lokr tucker": LoKrConfig(r=1, alpha=5, decompose_factor=2, use_effective_conv2d=True, target_modules=ALL),
    "oft": OFTConfig(oft_block_size=4, use_cayley_neumann=False, target_modules=ALL),
    "oft neumann": OFTConfig(oft_block_size=4, use_cayley_neumann=True, target_modules=ALL),
    "oft neumann 8": OFTConfig(
        oft_block_size=4, use_cayley_neumann=True, num_cayley_neumann_terms=8, target_modules=ALL
    ),
    "oft coft": OFTConfig(oft_block_size=3, coft=True, eps=0.1, use_cayley_neumann=False, target_modules=ALL),
    "oft shared": OFTConfig(oft_block_size=6, block_share=True, use_cayley_neumann=False, target_modules=ALL),
    "boft": BOFTConfig(boft_block_size=4, target_modules=ALL),
    "boft odd": BOFTConfig(boft_block_size=3, target_modules=["linear", "conv1"]),
    "ia3": IA3Config(target_modules=ALL, feedforward_modules=["unbiased", "conv1"]),
}


@pytest.mark.parametrize("adapter_name", ["default", "style"])
@pytest.mark.parametrize("name", CONFIGS)
def test_same_as_merge_and_unload(name, adapter_name, tmp_path):
    torch.manual_seed(0)
    base = Pico()
    model = get_peft_model(copy.deepcopy(base), copy.deepcopy(CONFIGS[name]), adapter_name)
    randomize(model)
    model.save_pretrained(tmp_path)
    folder = tmp_path if adapter_name == "default" else tmp_path / adapter_name
    found = merged(open_source(folder / "adapter_model.safetensors"), base.state_dict())
    expected = model.merge_and_unload().state_dict()
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert_near(found[key], value)
    assert any(not torch.equal(found[key], value) for key, value in base.state_dict().items())


def randomize(model: nn.Module) -> None:
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=0.2)
            if "magnitude" in name or "boft_s" in name:
                parameter.data.abs_().add_(0.5)


def test_boft_with_several_butterfly_factors(tmp_path):
    """PEFT merges them only with its CUDA extension; its permutations and Cayley transform do without."""
    torch.manual_seed(0)
    blocks, scale, weight = torch.randn(3, 4, 4, 4) / 5, torch.rand(6, 1) + 0.5, torch.randn(6, 16)
    layer = BOFTLinear(nn.Linear(16, 6), "default", BOFTConfig(boft_block_size=4))
    total = torch.eye(16)
    for stage in range(3):
        permutation = layer.perm2mat(layer.block_butterfly_perm(16, 4 // 2**stage, 2, 2))
        turn = torch.block_diag(*layer.cayley_batch(blocks[stage]))
        total = permutation @ turn @ permutation.T @ total
    source = write(tmp_path / "a.safetensors", {"x.boft_R": blocks, "x.boft_s": scale})
    (patch,) = read_adapter(source).patches
    assert_near(weight + delta(patch, weight), (total @ weight.T).T * scale)


@pytest.mark.parametrize("config", ["oft", "ia3"])
def test_a_file_that_needs_its_config_is_refused_without_it(config, tmp_path):
    model = get_peft_model(Pico(), copy.deepcopy(CONFIGS[config]))
    model.save_pretrained(tmp_path)
    (tmp_path / "adapter_config.json").unlink()
    with pytest.raises(FormatError) as caught:
        read_adapter(open_source(tmp_path / "adapter_model.safetensors"))
    assert "adapter_config.json" in caught.value.hint


@pytest.mark.parametrize("began", ["pissa", "olora", "gaussian", "orthogonal"])
def test_an_initialisation_that_changed_the_base_is_refused_and_others_are_honoured(began, tmp_path):
    torch.manual_seed(0)
    base = Pico()
    config = LoraConfig(r=2, lora_alpha=3, init_lora_weights=began, target_modules=["linear", "unbiased"])
    model = get_peft_model(copy.deepcopy(base), config)
    changed = not torch.equal(model.base_model.model.linear.base_layer.weight, base.linear.weight)
    randomize(model)
    model.save_pretrained(tmp_path)
    source = open_source(tmp_path / "adapter_model.safetensors")
    if changed:
        with pytest.raises(IncompatibleError, match=f"init_lora_weights is '{began}'"):
            read_adapter(source)
        return
    expected = model.merge_and_unload().state_dict()
    for key, value in merged(source, base.state_dict()).items():
        assert_near(value, expected[key])


@pytest.mark.parametrize("began", ["pissa", "pissa_niter_4", "olora"])
@pytest.mark.parametrize("how", ["converted", "beside", "both"])
@pytest.mark.parametrize("rslora", [False, True])
def test_what_was_taken_out_of_the_base_is_put_back(began, how, rslora, tmp_path):
    """PEFT's own conversion, and the adapter as training began, in its folder; a left-over one counts for nothing."""
    torch.manual_seed(0)
    base = Pico()
    config = LoraConfig(
        r=2, lora_alpha=3, init_lora_weights=began, target_modules=["linear", "unbiased"], use_rslora=rslora
    )
    model = get_peft_model(copy.deepcopy(base), config)
    folder = tmp_path / "adapter"
    start = tmp_path / "start" if how == "converted" else folder / "pissa_init"
    model.peft_config["default"].init_lora_weights = True  # as PEFT's guide has it
    model.save_pretrained(start)
    model.peft_config["default"].init_lora_weights = began
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.add_(0.1 * torch.randn(parameter.shape))
    converted = {} if how == "beside" else {"path_initial_model_for_weight_conversion": str(start)}
    model.save_pretrained(folder, **converted)
    expected = model.merge_and_unload().state_dict()
    for key, value in merged(open_source(folder), base.state_dict()).items():
        assert_near(value, expected[key])
    if how == "beside":
        with pytest.raises(IncompatibleError, match="init_lora_weights") as caught:
            read_adapter(open_source(folder / "adapter_model.safetensors"))
        assert f"as {began.partition('_')[0]}_init, and name the folder" in caught.value.hint


def test_a_quantised_base_cannot_be_had_back(tmp_path):
    source = write(tmp_path / "a.safetensors", {
        f"{begin}x.lora_{role}.weight": torch.ones(1, 1) for role in "AB" for begin in ("", "initial.")
    })  # fmt: skip
    with pytest.raises(IncompatibleError, match="'loftq', whose base was quantised"):
        read_adapter(source, {"r": 1, "lora_alpha": 1, "init_lora_weights": "loftq"})


def test_how_training_began_must_be_of_the_same_modules(tmp_path):
    torch.manual_seed(0)
    config = LoraConfig(r=2, init_lora_weights="pissa", target_modules=["linear", "unbiased"])
    get_peft_model(Pico(), config).save_pretrained(tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    (tmp_path / "pissa_init").mkdir()
    few = {name: tensor for name, tensor in load_file(file).items() if "unbiased" not in name}
    save_file(few, tmp_path / "pissa_init" / file.name)
    with pytest.raises(FormatError, match="is not in the adapter as training began"):
        read_adapter(open_source(tmp_path))


@pytest.mark.parametrize("field", ["use_qalora", "layer_replication", "alora_invocation_tokens"])
def test_a_field_that_gives_the_tensors_another_meaning_is_refused(field, tmp_path):
    source = write(tmp_path / "a.safetensors", {f"x.lora_{role}.weight": torch.ones(1, 1) for role in "AB"})
    read_adapter(source, {"r": 1, "lora_alpha": 1, field: None})
    with pytest.raises(IncompatibleError, match=field):
        read_adapter(source, {"r": 1, "lora_alpha": 1, field: [1]})


def test_a_dora_without_its_magnitude_is_refused(tmp_path):
    source = write(tmp_path / "a.safetensors", {f"x.lora_{role}.weight": torch.ones(1, 1) for role in "AB"})
    with pytest.raises(FormatError, match="without its magnitude"):
        read_adapter(source, {"r": 1, "lora_alpha": 1, "use_dora": True})


def test_a_file_that_diffusers_saved(tmp_path):
    torch.manual_seed(0)
    config = LoraConfig(r=3, lora_alpha=5, use_rslora=True, alpha_pattern={"conv3": 7}, target_modules=ALL)
    bases = {"unet": Pico(), "text_encoder_2": Pico()}
    models = {name: get_peft_model(copy.deepcopy(base), copy.deepcopy(config)) for name, base in bases.items()}
    saved = {}
    for name, model in models.items():
        randomize(model)
        layers = get_peft_model_state_dict(model)
        saved[f"{name}_lora_layers"] = {key.removeprefix("base_model.model."): layers[key] for key in layers}
        saved[f"{name}_lora_adapter_metadata"] = model.peft_config["default"].to_dict()
    StableDiffusionXLLoraLoaderMixin.save_lora_weights(tmp_path, **saved)
    parameters = {f"{name}.{key}": v for name, base in bases.items() for key, v in base.state_dict().items()}
    found = merged(open_source(tmp_path / "pytorch_lora_weights.safetensors"), parameters)
    for name, model in models.items():
        for key, value in model.merge_and_unload().state_dict().items():
            assert_near(found[f"{name}.{key}"], value)

"""A layer with a merged weight computes what the layer with LyCORIS' module around it computes."""

import copy

import numpy as np
import pytest
import torch
from adapterfile import assert_near, merged, write
from lycoris.modules.boft import ButterflyOFTModule
from lycoris.modules.diag_oft import DiagOFTModule
from lycoris.modules.dylora import DyLoraModule
from lycoris.modules.full import FullModule
from lycoris.modules.glora import GLoRAModule
from lycoris.modules.ia3 import IA3Module
from lycoris.modules.locon import LoConModule
from lycoris.modules.loha import LohaModule
from lycoris.modules.lokr import LokrModule
from lycoris.modules.norms import NormModule
from torch import nn

KEY = "lora_unet_layer"
LAYERS = {
    "linear": (lambda: nn.Linear(12, 8), (5, 12)),
    "conv1": (lambda: nn.Conv2d(12, 8, 1), (2, 12, 3, 3)),
    "conv3": (lambda: nn.Conv2d(12, 8, 3), (2, 12, 4, 4)),
}
NORMS = {
    "layer norm": (lambda: nn.LayerNorm(8), (5, 8)),
    "group norm": (lambda: nn.GroupNorm(2, 8), (2, 8, 3, 3)),
}
MODULES = {
    "locon": (LoConModule, {"lora_dim": 3, "alpha": 2}),
    "locon tucker": (LoConModule, {"lora_dim": 3, "alpha": 2, "use_tucker": True}),
    "locon rs": (LoConModule, {"lora_dim": 3, "alpha": 2, "rs_lora": True}),
    "locon scalar": (LoConModule, {"lora_dim": 3, "alpha": 2, "use_scalar": True}),
    "dora": (LoConModule, {"lora_dim": 3, "alpha": 2, "weight_decompose": True}),
    "dora columns": (LoConModule, {"lora_dim": 3, "alpha": 2, "weight_decompose": True, "wd_on_out": False}),
    "dora tucker": (LoConModule, {"lora_dim": 3, "alpha": 2, "weight_decompose": True, "use_tucker": True}),
    "loha": (LohaModule, {"lora_dim": 3, "alpha": 2}),
    "loha tucker": (LohaModule, {"lora_dim": 3, "alpha": 2, "use_tucker": True}),
    "loha rs": (LohaModule, {"lora_dim": 3, "alpha": 2, "rs_lora": True}),
    "loha dora": (LohaModule, {"lora_dim": 3, "alpha": 2, "weight_decompose": True}),
    "lokr": (LokrModule, {"lora_dim": 2, "alpha": 3, "factor": 2}),
    "lokr both": (LokrModule, {"lora_dim": 1, "alpha": 2, "decompose_both": True, "factor": 4}),
    "lokr whole": (LokrModule, {"lora_dim": 4, "alpha": 2, "full_matrix": True}),
    "lokr tucker": (LokrModule, {"lora_dim": 2, "alpha": 3, "factor": 2, "use_tucker": True}),
    "lokr dora": (LokrModule, {"lora_dim": 2, "alpha": 3, "factor": 2, "weight_decompose": True}),
    "oft": (DiagOFTModule, {"lora_dim": 4}),
    "oft rescaled": (DiagOFTModule, {"lora_dim": 4, "rescaled": True}),
    "oft constrained": (DiagOFTModule, {"lora_dim": 4, "constraint": 0.01, "rescaled": True}),
    "boft": (ButterflyOFTModule, {"lora_dim": 2}),
    "boft rescaled": (ButterflyOFTModule, {"lora_dim": 4, "rescaled": True}),
    "boft constrained": (ButterflyOFTModule, {"lora_dim": 2, "constraint": 0.01}),
    "ia3": (IA3Module, {}),
    "ia3 on input": (IA3Module, {"train_on_input": True}),
    "glora": (GLoRAModule, {"lora_dim": 3, "alpha": 2}),
    "full": (FullModule, {}),
}
CASES = [(layer, module) for layer in LAYERS for module in MODULES] + [(layer, "norm") for layer in NORMS]


@pytest.mark.parametrize(("layer", "module"), CASES)
def test_same_as_forward(layer, module, tmp_path):
    torch.manual_seed(0)
    make, input_shape = (LAYERS | NORMS)[layer]
    base, x = make(), torch.randn(input_shape)
    plain = base(x)
    algorithm, options = (MODULES | {"norm": (NormModule, {})})[module]
    wrapped = algorithm(KEY, copy.deepcopy(base), **options).eval()
    randomize(wrapped)
    wrapped.apply_to()
    source = write(tmp_path / "a.safetensors", {f"{KEY}.{name}": value for name, value in wrapped.state_dict().items()})
    parameters = {f"{KEY}.{name}": value for name, value in base.state_dict().items()}
    found = {name.removeprefix(f"{KEY}."): value for name, value in merged(source, parameters).items()}
    with torch.no_grad():
        expected = wrapped(x)
        assert_near(torch.func.functional_call(base, found, x), expected)
    assert (expected - plain).norm() > 1e-3 * plain.norm()


def randomize(module: nn.Module) -> None:
    """Every tensor, those too that training starts from zero; magnitudes stay positive."""
    for name, parameter in module.named_parameters():
        nn.init.normal_(parameter.data, std=0.3)
        if name in ("dora_scale", "rescale"):
            parameter.data.abs_().add_(0.5)


def test_dylora_is_read_as_a_lora(tmp_path):
    """Its file holds the blocks concatenated: at full rank, plain LoRA."""
    torch.manual_seed(0)
    base = nn.Conv2d(12, 8, 3)
    module = DyLoraModule(KEY, base, lora_dim=4, alpha=2, block_size=2)
    randomize(module)
    state = module.custom_state_dict()
    source = write(tmp_path / "a.safetensors", {f"{KEY}.{name}": value for name, value in state.items()})
    found = merged(source, {f"{KEY}.weight": base.weight.detach()})[f"{KEY}.weight"]
    up, down = (torch.cat(list(blocks), dim) for blocks, dim in ((module.up_list, 1), (module.down_list, 0)))
    assert_near(found, (base.weight + (up @ down).reshape(base.weight.shape) / 2).detach())


def test_a_stored_scalar_multiplies(tmp_path):
    torch.manual_seed(0)
    tensors = {
        "lora_up.weight": torch.randn(8, 3),
        "lora_down.weight": torch.randn(3, 12),
        "scalar": torch.tensor(0.25),
    }
    source = write(tmp_path / "a.safetensors", {f"{KEY}.{name}": value for name, value in tensors.items()})
    weight = torch.randn(8, 12)
    found = merged(source, {f"{KEY}.weight": weight})[f"{KEY}.weight"]
    assert_near(found, weight + 0.25 * tensors["lora_up.weight"] @ tensors["lora_down.weight"])


@pytest.mark.parametrize(("stored", "base"), [((3, 12), (8, 12, 1, 1)), ((3, 12, 1, 1), (8, 12))])
def test_linear_and_1x1_convolution_take_each_others_loras(stored, base, tmp_path):
    torch.manual_seed(0)
    up, down, weight = torch.randn(8, 3), torch.randn(stored), torch.randn(base)
    source = write(
        tmp_path / "a.safetensors",
        {f"{KEY}.lora_up.weight": up.reshape(8, *stored[:1], *stored[2:]), f"{KEY}.lora_down.weight": down},
    )
    found = merged(source, {f"{KEY}.weight": weight})[f"{KEY}.weight"]
    assert_near(found, weight + (up @ down.flatten(1)).reshape(base))


@pytest.mark.parametrize(
    ("module", "renamed"),
    [
        ("oft", {"oft_blocks": "oft_diag"}),
        ("oft constrained", {"oft_blocks": "oft_diag"}),
        ("glora", {f"{x}{i}.weight": f"{x}{3 - i}.weight" for x in "ab" for i in (1, 2)}),
        ("dora", {"dora_scale": "magnitude"}),  # as ai-toolkit calls it, [out]
    ],
)  # fmt: skip
def test_older_and_other_names_mean_the_same(module, renamed, tmp_path):
    torch.manual_seed(0)
    base, x = nn.Linear(12, 8), torch.randn(5, 12)
    algorithm, options = MODULES[module]
    wrapped = algorithm(KEY, copy.deepcopy(base), **options).eval()
    randomize(wrapped)
    wrapped.apply_to()
    tensors = {f"{KEY}.{renamed.get(name, name)}": value for name, value in wrapped.state_dict().items()}
    if "dora_scale" in renamed:
        tensors[f"{KEY}.magnitude"] = tensors[f"{KEY}.magnitude"].flatten()
    source = write(tmp_path / "a.safetensors", tensors)
    parameters = {f"{KEY}.{name}": value for name, value in base.state_dict().items()}
    found = {name.removeprefix(f"{KEY}."): value for name, value in merged(source, parameters).items()}
    with torch.no_grad():
        assert_near(torch.func.functional_call(base, found, x), wrapped(x))


@pytest.mark.parametrize("decomposed", [False, True])
def test_a_lokr_of_before_its_release_factorises_the_flat_convolution(decomposed, tmp_path):
    """w1 ⊗ w2 is [out, in·kh·kw], and w1's columns divide no inputs."""
    torch.manual_seed(0)
    left, right = torch.randn(2, 27), torch.randn(4, 4)
    halves = {"lokr_w1": left, "lokr_w2": right}
    if decomposed:
        a, b = torch.randn(4, 2), torch.randn(2, 4)
        halves, right = {"lokr_w1": left, "lokr_w2_a": a, "lokr_w2_b": b}, a @ b
    source = write(tmp_path / "a.safetensors", {f"{KEY}.{role}": tensor for role, tensor in halves.items()})
    weight = torch.randn(8, 12, 3, 3)
    product = torch.from_numpy(np.kron(left.numpy(), right.numpy())).reshape(weight.shape)
    assert_near(merged(source, {f"{KEY}.weight": weight})[f"{KEY}.weight"], weight + product)

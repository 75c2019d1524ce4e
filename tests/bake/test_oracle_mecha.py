"""A fuse of a whole single file equals sd-mecha's merge of it."""

import pytest
import sd_mecha
import torch
from fusing import fuse, load
from safetensors.torch import load_file
from sd_mecha.extensions import model_configs
from sd_mecha.keys_map import RealizedKeyRelation

CONFIGS = {
    "sd1": ("sd1-ldm", "sd1-kohya"),
    "sdxl": ("sdxl-sgm", "sdxl-kohya", "sdxl-kohya_but_diffusers"),
}


@pytest.fixture
def mecha(files, monkeypatch):
    """sd-mecha's merge. It knows the architectures at their real sizes alone, so it is told the picos' shapes."""
    # sd-mecha 1.1.8 subscripts its key relation when it converts an SD1 LoRA, and the class has no subscript.
    if not hasattr(RealizedKeyRelation, "__getitem__"):
        subscript = lambda self, name: self.inputs[name]  # noqa: E731
        monkeypatch.setattr(RealizedKeyRelation, "__getitem__", subscript, raising=False)

    def merge(name, loras, target):
        base = files(name).base("fp32")
        shapes = {stored: tensor.shape for stored, tensor in load_file(base).items()}
        for path, _ in loras:
            shapes |= lora_shapes(path)
        for config in CONFIGS[name]:
            for key, known in model_configs.resolve(config).keys().items():
                shape = shapes.get(key) or shapes.get("lora_" + key.removesuffix(".weight").replace(".", "_"))
                if shape:
                    monkeypatch.setattr(known, "shape", shape)
        recipe = model = sd_mecha.model(base)
        for path, strength in loras:
            recipe = recipe + (sd_mecha.convert(sd_mecha.model(path), model) * strength | 0.0)
        sd_mecha.merge(
            recipe,
            merge_dtype=torch.float32,
            output_dtype=torch.float32,
            threads=1,
            check_finite_output=False,
            omit_non_finite_inputs=False,
            output=target,
        )

    return merge


def lora_shapes(path):
    """Module → the shape of the weight that it updates."""
    tensors = load_file(path)
    return {
        name.removesuffix(".lora_up.weight"): (up.shape[0], *tensors[name.replace(".lora_up", ".lora_down")].shape[1:])
        for name, up in tensors.items()
        if name.endswith(".lora_up.weight")
    }


@pytest.mark.e2e
@pytest.mark.parametrize("name", CONFIGS)
def test_single_file_equals_sd_mecha(name, mecha, files, tmp_path):
    inputs = files(name)
    mecha(name, [(inputs.style, 0.8), (inputs.lcm, 1.0)], tmp_path / "mecha.safetensors")
    fuse(inputs.base("fp32"), tmp_path / "ours.safetensors", inputs.style, inputs.lcm, (0.8, 1.0))
    expected, found, base = (
        load(tmp_path / "mecha.safetensors"),
        load(tmp_path / "ours.safetensors"),
        load(inputs.base("fp32")),
    )
    assert found.keys() == expected.keys()
    assert sum(not torch.equal(expected[key], base[key]) for key in found) > 300
    for key, tensor in expected.items():
        assert (found[key] - tensor).norm() <= 1e-5 * tensor.norm(), key

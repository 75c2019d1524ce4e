"""The arithmetic on a GPU is that on the CPU, within one unit of the last place."""

import pytest
import torch
from adapterfile import write
from fusing import fuse, load, raw
from pico import pico

from lcmmerge.bake.outcome import Settings

QUERY = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
OUT = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_out_0"
MIXED = {
    f"{QUERY}.lora_up.weight": torch.full((8, 3), 0.1), f"{QUERY}.lora_down.weight": torch.full((3, 8), 0.2),
    f"{QUERY}.dora_scale": torch.linspace(0.9, 1.1, 8)[None],
    f"{OUT}.oft_blocks": 0.1 * torch.arange(8 * 16).reshape(8, 4, 4).sin(),
    "lora_unet_up_blocks_1_resnets_0_conv1.diff_b": torch.full((32,), 0.1),
}  # fmt: skip

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here"),
]


@pytest.mark.parametrize("seed", [None, 0])
@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16", "fp8_e4m3fn", "fp8_e5m2"])
def test_cuda_equals_cpu(dtype, seed, files, tmp_path):
    """LoRAs, dependent and dense adapters and a checkpoint difference at once."""
    inputs = files("sd1")
    terms = (
        (write(tmp_path / "mixed.safetensors", MIXED).path, 0.5),
        (pico("sd1", seed=1).folder(tmp_path / "tuned"), 0.1),
    )
    for device in ("cpu", "cuda"):
        settings = Settings(2, device)
        target = tmp_path / f"{device}.safetensors"
        fuse(inputs.base("fp32"), target, inputs.style, inputs.lcm, adapters=terms, settings=settings, dtype=dtype,
             rounding_seed=seed)  # fmt: skip
    cpu, cuda = load(tmp_path / "cpu.safetensors"), load(tmp_path / "cuda.safetensors")
    different = 0
    for name, tensor in cpu.items():
        if dtype == "fp32":
            assert (cuda[name] - tensor).norm() <= 1e-5 * tensor.norm()
            continue
        apart = (cuda[name].float() - tensor.float()).abs()
        unit = torch.finfo(tensor.dtype).eps * tensor.float().abs() + torch.finfo(tensor.dtype).smallest_normal
        assert (apart <= unit).all(), name
        different += int((apart > 0).sum())
    assert different <= 0.001 * sum(tensor.numel() for tensor in cpu.values())


def test_cuda_copies_what_nothing_touches(files, tmp_path):
    inputs = files("sd1")
    fuse(inputs.base(), tmp_path / "fused.safetensors", lcm=inputs.lcm, settings=Settings(2, "cuda"))
    before, found = load(inputs.base()), load(tmp_path / "fused.safetensors")
    same = [name for name in found if torch.equal(raw(found[name]), raw(before[name]))]
    assert len(same) == 1130 - 278

"""The arithmetic on a GPU is that on the CPU, within one unit of the last place."""

import pytest
import torch
from adapterfile import write
from fusing import fuse, load, raw
from pico import pico
from test_terms import ADAPTERS

from lcmmerge.merge.outcome import Settings

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here"),
]


@pytest.mark.parametrize("seed", [None, 0])
@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16", "fp8_e4m3fn", "fp8_e5m2"])
def test_cuda_equals_cpu(dtype, seed, files, tmp_path):
    """LoRAs, a dependent adapter and a checkpoint difference at once; what nothing touches is the same bytes."""
    inputs = files("sd1")
    terms = (
        (write(tmp_path / "dora.safetensors", ADAPTERS["dora"]).path, 0.5),
        (pico("sd1", seed=1).folder(tmp_path / "tuned"), 0.1),
    )
    for device in ("cpu", "cuda"):
        settings = Settings(2, device, seed)
        target = tmp_path / f"{device}.safetensors"
        fuse(inputs.base("fp32"), target, inputs.style, inputs.lcm, adapters=terms, settings=settings, dtype=dtype)
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

"""Merged parameters as tensors are those that a fuse writes, to the bit, in every layout."""

import pytest
import torch
from adapterfile import write
from fusing import canonical, fuse, raw
from merging import merge_of
from pico import pico

from lcmmerge.archs import identify
from lcmmerge.bake.tensors import merged, stored
from lcmmerge.merge.plan import plan as plan_merge
from lcmmerge.tensors import open_source

QUERY = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q"
DORA = {
    f"{QUERY}.lora_up.weight": torch.full((16, 3), 0.1), f"{QUERY}.lora_down.weight": torch.full((3, 16), 0.2),
    f"{QUERY}.dora_scale": torch.linspace(0.9, 1.1, 16)[None],
}  # fmt: skip


def assert_bits(read, expected):
    for name, tensor in expected.items():
        found = read(name)
        assert (found.dtype, found.shape) == (tensor.dtype, tensor.shape), name
        assert torch.equal(raw(found), raw(tensor)), name


@pytest.mark.parametrize("layout", ["single-file", "diffusers"])
@pytest.mark.parametrize("name", ["sd1", "sd2", "sdxl"])
def test_stored_parameters(name, layout, files):
    """Fused q, k, v, transpositions and 1×1 convolutions too."""
    path = files(name).base() if layout == "single-file" else files(name).folder()
    expected = {key: tensor.half() for key, tensor in pico(name).state().items()}
    assert_bits(stored(identify(open_source(path))), expected)


@pytest.mark.parametrize(("name", "layout"), [("sd1", "diffusers"), ("sd2", "single-file")])
def test_merged_parameters(name, layout, files, tmp_path):
    """An adapter whose change depends on W and another checkpoint are among the terms."""
    inputs, target = files(name), tmp_path / ("fused.safetensors" if layout == "single-file" else "fused")
    base = inputs.base() if layout == "single-file" else inputs.folder()
    tuned = pico(name, seed=1).single_file(tmp_path / "tuned.safetensors")
    dora = write(tmp_path / "dora.safetensors", DORA).path
    adapters = ((dora, 0.5), (tuned, 0.25))
    fuse(base, target, inputs.style, inputs.lcm, (0.8, 1.0), adapters=adapters)
    terms = tuple((str(path), strength) for path, strength in adapters)
    asked = merge_of(str(base), target, str(inputs.style), (0.8, 1.0), str(inputs.lcm), terms)
    plan = plan_merge(asked)
    with merged(plan) as read:
        assert_bits(read, canonical(target))

"""8 bits in groups of 32 with a power of two each, against comfy-kitchen's kernels."""

import pytest
import torch
from kitchen import MAGNITUDES, SHAPES, assert_same_bytes, fused_layers, normal, ours, theirs

from lcmmerge.bake import block
from lcmmerge.tensors.encodings import MAIN, encodings

NAME = "mxfp8"


@pytest.mark.parametrize("magnitude", MAGNITUDES)
@pytest.mark.parametrize("shape", [shape for shape in SHAPES if shape[0] % 32 == 0])  # they pad others
def test_their_bytes(shape, magnitude):
    assert_same_bytes(ours(NAME, normal(shape, magnitude)), theirs(NAME, normal(shape, magnitude)))


def test_their_bytes_of_zeros_and_just_above_a_power_of_two():
    assert_same_bytes(ours(NAME, torch.zeros(32, 64)), theirs(NAME, torch.zeros(32, 64)))
    rows = torch.ldexp(torch.full((32, 64), 448.0), torch.arange(-60, 4)[:, None].T)
    for ulps in range(4):
        nearby = (rows.view(torch.int32) + ulps).view(torch.float32)
        assert_same_bytes(ours(NAME, nearby), theirs(NAME, nearby))


def test_numbers_below_the_least_scale_are_near_zero():
    """Where theirs divide by nothing."""
    rows = normal((32, 64), 2.0**-140)
    found = encodings()[NAME].decode(ours(NAME, rows))
    assert (found - rows).abs().max() <= 2.0**-126 * 2**-10


def test_scales_lie_in_tiles_of_which_the_rest_is_zero():
    parts = ours(NAME, normal((160, 96)))
    assert parts["weight_scale"].shape == (256, 4)
    assert parts[MAIN].shape == (160, 96)
    assert (parts["weight_scale"] > 0).sum() == 160 * 3 - 4  # but for normal's zeros


def test_comfyui_reads_a_fuse(tmp_path, monkeypatch):
    monkeypatch.setattr(block, "ELEMENTS", 1 << 15)  # 128 rows at once
    layers = fused_layers(NAME, tmp_path)
    assert len(layers) == 10
    for layer in layers:
        largest = layer.exact.view(len(layer.exact), -1, 32).abs().amax(2, keepdim=True)
        least = (largest / 448 * 2**-9).expand(-1, -1, 32).reshape(layer.exact.shape)  # half of a scale's least step
        step = torch.maximum(layer.exact.abs() / 16, least)
        assert ((layer.given - layer.exact).abs() <= step * 1.00001).all()

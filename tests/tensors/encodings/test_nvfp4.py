"""4 bits in groups of 16 with an 8-bit scale each, against comfy-kitchen's kernels."""

import pytest
import torch
from kitchen import MAGNITUDES, SHAPES, assert_same_bytes, fused_layers, normal, ours, theirs

from lcmmerge.bake import block
from lcmmerge.tensors.encodings import MAIN, encodings

NAME = "nvfp4"


@pytest.mark.parametrize("magnitude", MAGNITUDES)
@pytest.mark.parametrize("shape", SHAPES)
def test_their_bytes(shape, magnitude):
    assert_same_bytes(ours(NAME, normal(shape, magnitude)), theirs(NAME, normal(shape, magnitude)))


def test_their_bytes_of_ties_and_of_what_is_beside_them():
    """The scales are 448 for the tensor and 1 for a group: numbers are their own."""
    ties = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, 0.0])
    beside = [ties, ties.nextafter(torch.tensor(9.0)), ties.nextafter(torch.tensor(-9.0))]
    values = torch.cat([*beside, *(-numbers for numbers in beside), torch.zeros(32)])
    groups = values.view(-1, 8)
    rows = torch.cat([groups, torch.full((len(groups), 8), 6.0)], 1).repeat(16, 1)
    rows[0, 15] = 448 * 6
    assert_same_bytes(ours(NAME, rows), theirs(NAME, rows))


def test_groups_far_below_the_peak_become_theirs():
    rows = normal((64, 256)) * torch.logspace(-9, 3, 64)[:, None]
    parts = ours(NAME, rows)
    assert (parts[MAIN] == 0).all(1).sum() > 4  # whole rows
    assert_same_bytes(parts, theirs(NAME, rows))


def test_a_tensor_of_zeros_has_a_scale():
    """Where theirs divide by nothing."""
    parts = ours(NAME, torch.zeros(32, 64))
    assert parts["weight_scale_2"] > 0
    assert not parts["weight_scale"].float().any()
    assert not parts[MAIN].any()
    assert not encodings()[NAME].decode(parts).any()


def test_comfyui_reads_a_fuse(tmp_path, monkeypatch):
    monkeypatch.setattr(block, "ELEMENTS", 1 << 15)  # 128 rows at once, which wait for the peak
    layers = fused_layers(NAME, tmp_path)
    assert len(layers) == 10
    for layer in layers:
        assert layer.scale.shape == (-(-len(layer.exact) // 128) * 128, layer.exact.shape[1] // 16)
        largest = layer.exact.view(len(layer.exact), -1, 16).abs().amax(2, keepdim=True)
        step = (largest / 6).expand(-1, -1, 16).reshape(layer.exact.shape)  # half of that from 4 to 6
        assert ((layer.given - layer.exact).abs() <= step * 1.08).all()  # a scale is rounded by at most a sixteenth

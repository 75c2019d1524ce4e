"""8 bits with a scale per tensor, against comfy-kitchen's kernels."""

import pytest
import torch
from kitchen import MAGNITUDES, SHAPES, assert_same_bytes, fused_layers, normal, ours, theirs

from lcmmerge.bake import block
from lcmmerge.tensors.encodings import encodings

NAME, FORMAT = "fp8_scaled", "float8_e4m3fn"


@pytest.mark.parametrize("magnitude", MAGNITUDES)
@pytest.mark.parametrize("shape", SHAPES)
def test_their_bytes(shape, magnitude):
    assert_same_bytes(ours(NAME, normal(shape, magnitude)), theirs(FORMAT, normal(shape, magnitude)))


def test_numbers_that_have_no_scale_with_a_reciprocal_are_near_zero():
    """Where theirs divide by nothing."""
    for rows in (torch.zeros(32, 256), normal((32, 256), 2.0**-140)):
        parts = ours(NAME, rows)
        assert 0 < parts["weight_scale"] < 1e-37
        assert (encodings()[NAME].decode(parts) - rows).abs().max() <= 2.0**-126 * 2**-10


def test_comfyui_reads_a_fuse(tmp_path, monkeypatch):
    monkeypatch.setattr(block, "ELEMENTS", 1 << 15)  # many blocks, of which each waits for the peak
    layers = fused_layers(NAME, tmp_path)
    assert len(layers) == 10
    for layer in layers:
        assert layer.scale.shape == ()
        assert layer.scale == layer.exact.abs().max() / 448
        step = (layer.exact.abs() / 16).clamp(min=float(layer.scale) * 2**-10)
        assert ((layer.given - layer.exact).abs() <= step * 1.00001).all()

"""Rotated 8-bit integers with a scale per row, against comfy-kitchen's kernels.

Theirs rotate by a product of matrices, whose last bits depend on how many rows there are. So bytes are compared where
the sums are exact, and elsewhere what is no tie.
"""

import pytest
import torch
from comfy_kitchen.tensor.int8_utils import _build_hadamard
from kitchen import SHAPES, assert_same_bytes, fused_layers, normal, ours, theirs

from lcmmerge.bake import block
from lcmmerge.tensors.encodings import MAIN, encodings
from lcmmerge.tensors.encodings.int8_convrot import GROUP, rotate

NAME, FORMAT = "int8_convrot", "int8_tensorwise"
OPTIONS = {"per_channel": True, "convrot": True}


def whole_numbers(shape, magnitude=1.0):
    """Their sums are exact in float32."""
    rows = torch.randint(-2048, 2049, shape, generator=torch.Generator().manual_seed(0)).float()
    rows[2, :32] = 0
    rows[3] = 0
    return rows * magnitude


@pytest.mark.parametrize("magnitude", [1.0, 2.0**-40, 2.0**60])
@pytest.mark.parametrize("shape", SHAPES)
def test_their_bytes(shape, magnitude):
    rows = whole_numbers(shape, magnitude)
    assert_same_bytes(ours(NAME, rows), theirs(FORMAT, rows, **OPTIONS))


def test_their_bytes_of_zeros_and_of_what_is_below_the_least_scale():
    for rows in (torch.zeros(32, 256), whole_numbers((32, 256), 2.0**-120)):
        assert_same_bytes(ours(NAME, rows), theirs(FORMAT, rows, **OPTIONS))


@pytest.mark.parametrize("shape", SHAPES)
def test_other_numbers_become_theirs_but_for_ties(shape):
    rows = normal(shape)
    found, expected = ours(NAME, rows), theirs(FORMAT, rows, **OPTIONS)
    torch.testing.assert_close(found["weight_scale"], expected["weight_scale"], rtol=1e-6, atol=0)
    exact = rotate(rows.double()) / found["weight_scale"]
    tie = (exact - exact.floor() - 0.5).abs() < 1e-4
    assert tie.float().mean() < 1e-3
    assert found[MAIN][~tie].equal(expected[MAIN][~tie])
    assert (found[MAIN].int() - expected[MAIN].int()).abs().max() <= 1


def test_the_rotation_is_the_product_and_its_own_inverse():
    rows = torch.randn(5, 3 * GROUP, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    product = (rows.view(5, 3, GROUP) @ _build_hadamard(GROUP, dtype=torch.float64)).view(rows.shape)
    torch.testing.assert_close(rotate(rows), product)
    torch.testing.assert_close(rotate(rotate(rows)), rows)


@pytest.mark.parametrize("rows", [torch.randn(1, GROUP), torch.randn(GROUP, 64).T])
def test_the_rotation_leaves_what_it_is_given(rows):
    """Where the transpose of the groups lies as the rows do."""
    before = rows.clone()
    rotate(rows)
    assert torch.equal(rows, before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_each_rotated_number_becomes_the_nearest(dtype):
    rows = normal((24, 2 * GROUP)).to(dtype) * torch.logspace(-4, 2, 24)[:, None]
    parts = ours(NAME, rows)
    assert ((rotate(rows.double()) / parts["weight_scale"] - parts[MAIN]).abs() <= 0.5 + 1e-4).all()


def test_stochastic_rounding_takes_a_neighbour_and_is_unbiased():
    value, count = 0.3712345, 64 * GROUP
    rotated = torch.full((1, count), value)
    rotated[:, 0] = 1
    encoding = encodings()[NAME]
    parts = encoding.allocate((1, count))
    encoding.encode(rotate(rotated), parts, torch.Generator().manual_seed(0), 0.0)
    codes = parts[MAIN][0, 1:].double()
    assert codes.unique().tolist() == [47, 48]
    assert abs(codes.mean() - value * 127) < 4 * 0.5 / count**0.5


def test_comfyui_reads_a_fuse(tmp_path, monkeypatch):
    monkeypatch.setattr(block, "ELEMENTS", 1 << 15)
    layers = fused_layers(NAME, tmp_path)
    assert len(layers) == 10
    for layer in layers:
        assert layer.scale.shape == (len(layer.exact), 1)
        lost = rotate(layer.given.double() - layer.exact.double()).abs()
        assert (lost <= layer.scale * (0.5 + 1e-3)).all()

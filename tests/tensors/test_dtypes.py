"""Scalars decoded without torch, against torch."""

import math

import pytest
import torch

from lcmmerge.tensors.dtypes import DTYPES, decode_scalar


@pytest.mark.parametrize("name", ["F8_E4M3", "F8_E5M2"])
def test_every_byte_of_the_8_bit_floats(name: str) -> None:
    dtype = DTYPES[name]
    expected = torch.arange(256, dtype=torch.uint8).view(dtype.torch).float().tolist()
    decoded = [decode_scalar(dtype, bytes([byte])) for byte in range(256)]
    assert all(a == b or (math.isnan(a) and math.isnan(b)) for a, b in zip(decoded, expected, strict=True))


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=lambda dtype: dtype.name)
@pytest.mark.parametrize("value", [0, 1, 8])
def test_a_scalar_of_every_dtype(dtype: object, value: int) -> None:
    stored = torch.tensor([value]).to(dtype.torch)
    data = bytes(stored.view(torch.uint8).tolist())
    assert decode_scalar(dtype, data) == float(stored.float()[0])

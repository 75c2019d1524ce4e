"""Oracle: the gguf package, whose bytes and numbers are ours."""

import subprocess
import sys

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lcmmerge.errors import LcmMergeError
from lcmmerge.tensors.encodings import MAIN, encodings, name_of
from lcmmerge.tensors.encodings.ggml import GGML, READ_ONLY
from lcmmerge.tensors.gguf import TYPES

QUANTISED = [name for name, encoding in GGML.items() if encoding.block > 1]


def normal(scale=1.0):
    return np.random.default_rng(0).standard_normal((48, 320)) * scale


def ties():
    """Numbers between two codes, whose block's scale is exact."""
    draw = np.random.default_rng(1)
    codes = [draw.integers(-2 * most, 2 * most, (16, 10, 32)) / 2 for most in (7, 15, 127)]
    for block, most in zip(codes, (8, 16, 127), strict=True):
        block[:, :, 5] = -most
    ranges = [draw.integers(0, 2 * most, (16, 10, 32)) / 2 for most in (15, 31)]
    for block, most in zip(ranges, (15, 31), strict=True):
        block[:, :, 3], block[:, :, 30] = 0, most
    return np.concatenate([block.reshape(16, 320) for block in (*codes, *ranges)])


NUMBERS = {
    "normal": normal(),
    "small": normal(1e-3),
    "scales below the normal float16s": normal(1e-5),
    "scales that are 0 as float16": normal(1e-9),
    "denormal": normal(1e-39),
    "heavy tails": np.random.default_rng(0).standard_t(1.5, (48, 320)).clip(-65504, 65504),
    "the largest": np.random.default_rng(0).choice([-65504.0, 65504.0, 0.0, 1.0], (8, 64)),
    "zeros": np.zeros((4, 64)),
    "negative zeros": -np.zeros((4, 64)),
    "constant rows": np.tile([[0.37], [-0.37], [1.0], [-8.0]], (1, 64)),
    "ties": ties(),
    "as large on both sides": np.random.default_rng(2).choice([-1.0, -0.5, 0.5, 1.0], (32, 320)),
}


def encoded(name, rows, generator=None):
    parts = GGML[name].allocate(tuple(rows.shape))
    GGML[name].encode(rows, parts, generator, torch.nan)
    return parts


def theirs(name, values):
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        return gguf.quantize(values, gguf.GGMLQuantizationType[name.upper()])


def check(name, values):
    values = np.ascontiguousarray(values, np.float32)
    parts, stored = encoded(name, torch.from_numpy(values)), theirs(name, values)
    assert parts[MAIN].view(torch.uint8).numpy().tobytes() == stored.tobytes()
    numbers = gguf.dequantize(stored, gguf.GGMLQuantizationType[name.upper()])
    assert GGML[name].decode(parts).float().numpy().tobytes() == numbers.tobytes()


@pytest.mark.parametrize("numbers", NUMBERS)
@pytest.mark.parametrize("name", GGML)
def test_bytes_and_numbers_are_those_of_ggml(name, numbers):
    if numbers == "denormal" and name in QUANTISED:
        pytest.skip("their casts of infinity are not defined; ours are below")
    check(name, NUMBERS[numbers])


@pytest.mark.parametrize("name", GGML)
@given(data=st.data())
def test_of_any_block_too(name, data):
    size = data.draw(st.sampled_from([1e-20, 1e-6, 1.0, 60000.0]))
    number = st.floats(-1, 1, width=32) | st.sampled_from([-1.0, 1.0, 0.5, 0.0])
    values = np.array(data.draw(st.lists(number, min_size=32, max_size=32)), np.float32) * np.float32(size)
    values += np.float32(0)  # of zeros of both signs the least may be either
    if name in QUANTISED and np.ptp(values) < 1e-35:  # as above
        values[:] = 0
    check(name, values[None])


@pytest.mark.parametrize("name", QUANTISED)
def test_numbers_too_small_for_the_scale_are_zeros(name):
    for generator in (None, torch.Generator().manual_seed(0)):
        parts = encoded(name, torch.from_numpy(NUMBERS["denormal"]).float(), generator)
        assert not GGML[name].decode(parts).any()


@pytest.mark.parametrize("name", QUANTISED)
def test_stochastic_rounding_is_unbiased_about_the_scale_that_is_stored(name):
    row = torch.randn(32, generator=torch.Generator().manual_seed(3)) * 0.013
    parts = encoded(name, row.repeat(20000, 1), torch.Generator().manual_seed(0))
    numbers = GGML[name].decode(parts).double()
    step = parts[MAIN][0, :2].view(torch.float16).double().abs()
    inside = (row > numbers.amin()) & (row < numbers.amax())  # what lies outside can only be clamped
    assert inside.sum() >= 28
    assert ((numbers.mean(0) - row)[inside].abs() < 5 * step / 2 / 20000**0.5).all()
    assert ((numbers - row)[:, inside].abs() < step * 1.01).all()


@pytest.mark.parametrize("name", READ_ONLY)
def test_what_is_only_read_is_decoded_by_the_package(name):
    kind, encoding = TYPES[name.upper()], READ_ONLY[name]
    assert name_of(encoding) == f"gguf:{name}"
    assert (encoding.block, encoding.block_bytes) == gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name.upper()]]
    stored = np.random.default_rng(0).integers(0, 60, (3, 2 * kind.block_bytes), np.uint8)  # no NaN among the scales
    numbers = gguf.dequantize(stored, gguf.GGMLQuantizationType[name.upper()])
    decoded = encoding.decode({MAIN: torch.from_numpy(stored)})
    assert decoded.shape == (3, 2 * kind.block) and decoded.any()
    assert decoded.numpy().tobytes() == numbers.tobytes()
    assert encoding.read_only
    with pytest.raises(NotImplementedError):
        encoding.encode(decoded, encoding.allocate(tuple(decoded.shape)), None, torch.nan)


def test_every_type_that_the_package_decodes_is_read():
    decoded = {kind.name.lower() for kind in gguf.quants._type_traits} | {"f32", "f16"}
    assert GGML.keys() | READ_ONLY.keys() == decoded
    assert {name for name in encodings() if name.startswith("gguf:")} == {f"gguf:{name}" for name in GGML}


def test_without_the_package_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(LcmMergeError, match="not installed here: gguf") as caught:
        READ_ONLY["q4_k"].decode({MAIN: torch.zeros(1, 144, dtype=torch.uint8)})
    assert caught.value.hint == "pip install 'lcmmerge[gguf]'"


def test_what_is_written_needs_no_package():
    code = (
        "import sys; sys.modules['gguf'] = None; import torch; from lcmmerge.tensors.encodings.ggml import GGML\n"
        "for encoding in GGML.values():\n"
        "    parts = encoding.allocate((2, 64)); encoding.encode(torch.ones(2, 64), parts, None, 1.0)\n"
        "    print(bool((encoding.decode(parts).float() - 1).abs().max() < 1e-3))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True"] * len(GGML)

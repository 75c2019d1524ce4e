"""What every registered encoding must keep to."""

import subprocess
import sys
from math import inf, prod

import pytest
import torch

from lcmmerge.tensors.encodings import MAIN, aware, encodings
from lcmmerge.tensors.layout import TensorSpec

NAMES = list(encodings())
ROTATED = ("int8_convrot",)  # what is rounded are no numbers of the matrix: its own tests look at them
SCALED = [name for name, encoding in encodings().items() if encoding.scales]
AS_THEY_ARE = [name for name in NAMES if name not in ROTATED]
SHAPES = ((64, 768), (32, 16, 4, 4))


def matrix(shape, seed=0):
    return torch.randn(shape[0], prod(shape[1:]), generator=torch.Generator().manual_seed(seed))


def stored(encoding, rows, generator=None, fill=0, peak=None):
    """Parts of which every byte was ``fill`` before."""
    parts = encoding.allocate(tuple(rows.shape))
    constant = {item.suffix for item in encoding.companions if item.constant is not None}
    for suffix in parts.keys() - constant:
        parts[suffix].reshape(-1).view(torch.uint8).fill_(fill)
    encoding.encode(rows, parts, generator, float(rows.abs().max()) if encoding.peaked and peak is None else peak)
    return parts


def raw(parts):
    return {suffix: tensor.reshape(-1).view(torch.uint8).numpy().tobytes() for suffix, tensor in parts.items()}


def test_importing_them_loads_no_torch():
    code = "import sys; from lcmmerge.tensors.encodings import encodings; encodings(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


@pytest.mark.parametrize("name", NAMES)
def test_says_what_it_is_and_what_it_takes(name):
    encoding = encodings()[name]
    assert encoding.title
    assert 0 < encoding.largest < inf
    assert encoding.takes("unet.down_blocks.0.attentions.0.proj_in.weight", (320, 320))
    metadata = encoding.metadata(["a.weight", "b.weight"])
    assert all(isinstance(text, str) for text in (*metadata, *metadata.values()))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", NAMES)
def test_takes_the_bytes_that_it_declares(name, shape):
    encoding = encodings()[name]
    assert encoding.fits(shape)
    specs = encoding.specs("a.module.weight", shape)
    parts = stored(encoding, matrix(shape))
    assert specs[MAIN].name == "a.module.weight"
    assert len({spec.name for spec in specs.values()}) == len(specs) == len(parts)
    assert encoding.row_bytes(prod(shape[1:])) * shape[0] == specs[MAIN].nbytes
    for suffix, tensor in parts.items():
        spec = specs[suffix]
        assert tensor.nbytes == spec.nbytes == TensorSpec(spec.name, spec.dtype, tuple(tensor.shape)).nbytes
        assert spec.name == "a.module." + (suffix or "weight")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("seed", [None, 5])
def test_the_same_rows_give_the_same_bytes_and_all_of_them(name, seed):
    encoding, rows = encodings()[name], matrix(SHAPES[0])
    generators = [None if seed is None else torch.Generator().manual_seed(seed) for _ in range(2)]
    first, second = (stored(encoding, rows, each, fill) for each, fill in zip(generators, (0, 255), strict=True))
    assert raw(first) == raw(second)
    assert torch.equal(rows, matrix(SHAPES[0]))  # they are the caller's


@pytest.mark.parametrize("name", NAMES)
def test_rows_depend_on_each_other_by_the_peak_alone(name):
    encoding = encodings()[name]
    rows = matrix((64 * encoding.granule, 256))
    peak, granule = float(rows.abs().max()), encoding.granule
    whole = stored(encoding, rows, peak=peak)
    for some in (slice(0, granule), slice(granule * 7, granule * 30), slice(granule * 2, 64 * granule)):
        assert raw(stored(encoding, rows[some], peak=peak)) == raw(encoding.cut(whole, some))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", AS_THEY_ARE)
def test_each_number_becomes_the_nearest(name, dtype):
    """Of those that the same block, or where there are none the same row, has become.

    ggml rounds for a block's scale and least number before these are rounded to float16.
    """
    encoding = encodings()[name]
    rows = matrix((24, 4096)).to(dtype) * torch.logspace(-4, 2, 24)[:, None]
    found = encoding.decode(stored(encoding, rows)).double()
    assert found.shape == rows.shape
    width = encoding.block if encoding.block > 1 else rows.shape[1]
    later = encoding.container == "gguf" and encoding.block > 1
    for exact, given in zip(rows.double().reshape(-1, width), found.reshape(-1, width), strict=True):
        levels = given.unique()
        place = torch.searchsorted(levels, exact).clamp(1, max(len(levels) - 1, 1))
        beside = torch.stack([levels[place - 1], levels[place.clamp(max=len(levels) - 1)]])
        least = (beside - exact).abs().amin(0)
        slack = 3 * 2**-10 * exact.abs().max() + 2**-17 if later else 1e-6 * given.abs()
        assert ((given - exact).abs() <= least + slack).all()


@pytest.mark.parametrize("name", AS_THEY_ARE)
def test_stochastic_rounding_takes_a_neighbour_and_is_unbiased(name):
    encoding, value, count = encodings()[name], 0.3712345, 16384
    rows = torch.full((1, count), value)
    width = encoding.block if encoding.block > 1 else count
    rows[:, ::width], rows[:, 1::width] = 1.0, 0.0  # the largest and the least of its row or block
    generator = torch.Generator().manual_seed(0)
    same = rows == value
    found = encoding.decode(stored(encoding, rows, generator)).double()[same]
    nearest = encoding.decode(stored(encoding, rows)).double()[same]
    levels = found.unique()
    assert len(levels) <= 2
    assert nearest[0] in levels
    if len(levels) == 1:  # it holds the number exactly
        assert (found - value).abs().max() < 1e-6
        return
    low, high = levels
    assert low <= value <= high
    assert abs(found.mean() - value) < 4 * (high - low) / 2 / len(found) ** 0.5


def error_aware(encoding, rows, peak):
    parts = encoding.allocate(tuple(rows.shape))
    aware.encode(encoding, rows, parts, peak)
    return parts


@pytest.mark.parametrize("name", SCALED)
def test_scales_times_ones_give_its_own_bytes(name):
    encoding = encodings()[name]
    for rows in (matrix(SHAPES[0]), torch.zeros(SHAPES[0]), matrix(SHAPES[0]) * torch.logspace(-40, 3, 64)[:, None]):
        parts, peak = encoding.allocate(tuple(rows.shape)), float(rows.abs().max())
        groups = rows.shape[1] // (encoding.scales.group or rows.shape[1])
        encoding.scales.encode(rows, parts, None, peak, torch.ones(len(rows), groups))
        assert raw(parts) == raw(stored(encoding, rows, peak=peak))


@pytest.mark.parametrize("size", [1e-6, 1.0, 1e3])
@pytest.mark.parametrize("name", SCALED)
def test_error_aware_no_group_loses_more_than_to_nearest_and_some_less(name, size):
    encoding, rows = encodings()[name], matrix((256, 768)) * size
    peak, width = float(rows.abs().max()), encoding.scales.group or rows.shape[1]
    before, after = (
        (encoding.decode(parts).double() - rows).square().view(-1, width).sum(1)
        for parts in (stored(encoding, rows, peak=peak), error_aware(encoding, rows, peak))
    )
    assert (after <= before * (1 + 1e-6)).all()
    assert after.sum() < before.sum()


@pytest.mark.parametrize("name", SCALED)
def test_error_aware_rows_depend_on_each_other_by_the_peak_alone(name):
    encoding = encodings()[name]
    rows = matrix((8 * encoding.granule, 768))
    peak, granule = float(rows.abs().max()), encoding.granule
    whole = error_aware(encoding, rows, peak)
    for some in (slice(0, granule), slice(granule, 4 * granule), slice(2 * granule, 8 * granule)):
        assert raw(error_aware(encoding, rows[some], peak)) == raw(encoding.cut(whole, some))


@pytest.mark.parametrize("name", NAMES)
def test_zeros_stay_zeros(name):
    encoding = encodings()[name]
    for generator in (None, torch.Generator().manual_seed(0)):
        assert not encoding.decode(stored(encoding, torch.zeros(SHAPES[0]), generator)).float().any()

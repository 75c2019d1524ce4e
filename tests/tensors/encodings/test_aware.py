"""Error-aware rounding: of the scales that are tried, each group of numbers has the one by which it loses least."""

import pytest
import torch
from torch.distributions import StudentT

from lcmmerge.tensors.encodings import MAIN, aware, encodings

SCALED = {name: encoding for name, encoding in encodings().items() if encoding.scales}
GAINS = {"nvfp4": 0.09, "int8_convrot": 0.005}  # of the error to nearest; of others:
GAIN = 0.02


def heavy(rows=128, columns=3072):
    torch.manual_seed(0)
    return StudentT(5.0).sample((rows, columns)) * 0.02


def errors(encoding, rows, encode):
    """‖Ŵ − W‖² of each group."""
    parts = encoding.allocate(tuple(rows.shape))
    encode(rows, parts)
    width = encoding.scales.group or rows.shape[1]
    return (encoding.decode(parts).double() - rows.double()).square().view(len(rows), -1, width).sum(2)


def to_nearest(encoding, rows):
    peak = float(rows.abs().max())
    return errors(encoding, rows, lambda rows, parts: encoding.encode(rows, parts, None, peak))


def chosen(encoding, rows):
    peak = float(rows.abs().max())
    return errors(encoding, rows, lambda rows, parts: aware.encode(encoding, rows, parts, peak))


def test_the_formats_whose_scales_are_of_rows_or_blocks():
    assert set(SCALED) == {
        "gguf:q4_0", "gguf:q4_1", "gguf:q5_0", "gguf:q5_1", "gguf:q8_0", "int8_convrot", "nvfp4",
    }  # fmt: skip


@pytest.mark.parametrize("name", SCALED)
def test_heavy_tails_lose_less(name):
    rows = heavy()
    before, after = to_nearest(SCALED[name], rows).sum(), chosen(SCALED[name], rows).sum()
    assert 1 - (after / before).sqrt() > GAINS.get(name, GAIN)


@pytest.mark.parametrize("name", SCALED)
def test_it_is_the_best_of_what_is_tried(name):
    encoding, rows = SCALED[name], heavy()
    peak = float(rows.abs().max())

    def by(factor):
        def encode(rows, parts):
            factors = torch.full((len(rows), rows.shape[1] // (encoding.scales.group or rows.shape[1])), factor)
            encoding.scales.encode(rows, parts, None, peak, factors)

        return errors(encoding, rows, encode)

    tried = torch.stack([by(factor) for factor in (1.0, *encoding.scales.factors)])
    assert len(tried.argmin(0).unique()) > 1
    assert torch.allclose(chosen(encoding, rows), tried.amin(0), rtol=1e-5, atol=0)


@pytest.mark.parametrize("number", [0.0, 1e-39, 1e-7, 65504.0])
@pytest.mark.parametrize("name", SCALED)
def test_what_scales_cannot_hold_is_not_chosen(name, number):
    """Of zeros and denormals every error is the same; above the largest float16 a scale would be infinite."""
    encoding = SCALED[name]
    rows = heavy(128, 256).clamp(-1, 1).sign() * number
    after = chosen(encoding, rows)
    assert after.isfinite().all()
    assert (after <= to_nearest(encoding, rows)).all()


@pytest.mark.parametrize("name", SCALED)
def test_rows_in_float64_and_rows_that_are_columns_elsewhere(name):
    encoding, rows = SCALED[name], heavy(256, 256)
    wanted = chosen(encoding, rows)
    assert torch.equal(chosen(encoding, rows.T.contiguous().T), wanted)
    assert torch.allclose(chosen(encoding, rows.double()), wanted, rtol=1e-3)


def test_an_outlier_is_clipped_where_many_others_gain():
    """Q4_0: beside a number of −1 steps are 1/8, and 0.06 is nothing; by a smaller scale it is something."""
    encoding = SCALED["gguf:q4_0"]
    rows = torch.full((1, 32), 0.06)
    rows[0, 0] = -1.0
    parts = encoding.allocate((1, 32))
    encoding.encode(rows, parts, None, torch.nan)
    assert not encoding.decode(parts)[0, 1:].any()
    aware.encode(encoding, rows, parts, torch.nan)
    assert (encoding.decode(parts)[0, 1:] > 0.09).all()
    assert parts[MAIN][0, :2].view(torch.float16) < 1 / 8

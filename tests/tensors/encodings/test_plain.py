"""A cast to a dtype, against numpy's and ml_dtypes' own."""

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lcmmerge.tensors.dtypes import DTYPES, OUTPUT_DTYPES
from lcmmerge.tensors.encodings import MAIN, encodings, plain

THEIRS = {
    "fp32": np.float32,
    "fp16": np.float16,
    "bf16": ml_dtypes.bfloat16,
    "fp8_e4m3fn": ml_dtypes.float8_e4m3fn,
    "fp8_e5m2": ml_dtypes.float8_e5m2,
}


@pytest.mark.parametrize("name", OUTPUT_DTYPES)
@given(data=st.data())
def test_rounds_to_nearest_and_ties_to_even(name, data):
    encoding, theirs = encodings()[name], np.dtype(THEIRS[name])
    number = st.floats(-encoding.largest, encoding.largest, width=32)
    bits = st.integers(0, 2 ** (8 * theirs.itemsize) - 1)
    tie = st.builds(halfway, st.just(theirs), bits).filter(lambda value: abs(value) < encoding.largest)
    values = np.array(data.draw(st.lists(number | tie, min_size=1, max_size=64)), np.float32)
    rows = torch.from_numpy(values)[None]
    parts = encoding.allocate(tuple(rows.shape))
    encoding.encode(rows, parts, None, torch.nan)
    assert parts[MAIN].reshape(-1).view(torch.uint8).numpy().tobytes() == values.astype(theirs).tobytes()
    assert encoding.decode(parts).double().numpy().tobytes() == values.astype(theirs).astype(np.float64).tobytes()


def halfway(dtype, bits):
    """Between the numbers of these bits and the next; beyond the largest, and in float32 itself, there is none."""
    unsigned = np.dtype(f"u{dtype.itemsize}")
    with np.errstate(all="ignore"):
        low, high = (np.array(each % 2 ** (8 * dtype.itemsize), unsigned).view(dtype) for each in (bits, bits + 1))
        middle = np.float32((float(low) + float(high)) / 2)
    return float(middle) if np.isfinite(middle) else 0.0


@pytest.mark.parametrize("dtype", [dtype for dtype in DTYPES.values() if dtype.floating], ids=lambda dtype: dtype.name)
def test_the_largest_number_is_torch_s(dtype):
    assert plain(dtype).largest == torch.finfo(dtype.torch).max

"""The statistics of the claim, against plain numpy and known cases."""

import numpy as np
import pytest
import torch
from embedded.judge import energy_distance, proportion


def plain_energy(x: np.ndarray, y: np.ndarray) -> float:
    def mean(a: np.ndarray, b: np.ndarray, pairs: int) -> float:
        return sum(float(np.linalg.norm(p - q)) for p in a for q in b) / pairs

    n, m = len(x), len(y)
    return 2 * mean(x, y, n * m) - mean(x, x, n * (n - 1)) - mean(y, y, m * (m - 1))


def test_energy_distance_is_the_textbook_one() -> None:
    draw = torch.Generator().manual_seed(0)
    ours, theirs = torch.randn(20, 3, generator=draw) + 0.5, torch.randn(30, 3, generator=draw)
    value, low, high = energy_distance(ours, theirs)
    assert value == pytest.approx(plain_energy(ours.numpy(), theirs.numpy()), rel=1e-4)
    assert low < value < high


def test_the_same_distribution_is_at_no_distance() -> None:
    draw = torch.Generator().manual_seed(1)
    same = energy_distance(torch.randn(500, 4, generator=draw), torch.randn(500, 4, generator=draw))
    other = energy_distance(torch.randn(500, 4, generator=draw) + 0.5, torch.randn(500, 4, generator=draw))
    assert abs(same[0]) < 0.02
    assert other[1] > 0.1


@pytest.mark.parametrize(
    ("hits", "count", "low", "high"), [(0, 10, 0.0, 0.278), (5, 10, 0.237, 0.763), (81, 263, 0.255, 0.366)]
)
def test_wilsons_interval(hits: int, count: int, low: float, high: float) -> None:
    """Values of Newcombe 1998, https://doi.org/10.1002/(SICI)1097-0258(19980430)17:8<857::AID-SIM777>3.0.CO;2-E."""
    share, below, above = proportion(torch.arange(count) < hits)
    assert share == pytest.approx(hits / count)
    assert (below, above) == (pytest.approx(low, abs=1e-3), pytest.approx(high, abs=1e-3))

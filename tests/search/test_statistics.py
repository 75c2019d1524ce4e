"""Distances against plain loops, and intervals that hold what they promise."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lcmmerge.search.statistics import (
    Estimate,
    energy_distance,
    gram_distance,
    once,
    paired_error,
    resamples,
    spectrum_error,
)

DISTANCES = [energy_distance, paired_error, spectrum_error, gram_distance]


def drawn(seed, count=12, shape=(4, 8, 8)):
    return torch.randn((count, *shape), generator=torch.Generator().manual_seed(seed))


def plain_energy(x, y, times):
    """By its definition, with each sample as often as ``times`` says, and pairs of one index left out."""
    total = pairs = 0.0
    for i in range(len(x)):
        for j in range(len(x)):
            if i != j:
                cross = (x[i] - y[j]).norm() + (x[j] - y[i]).norm()
                within = (x[i] - x[j]).norm() + (y[i] - y[j]).norm()
                total += times[i] * times[j] * float(cross - within)
                pairs += times[i] * times[j]
    return total / pairs / x[0].numel() ** 0.5


@given(st.integers(2, 6), st.integers(0, 1000))
def test_energy_distance_is_its_definition(count, seed):
    x, y = drawn(seed, count, (2, 3, 3)), 1.5 * drawn(seed + 1, count, (2, 3, 3)) + 0.3
    weights = torch.cat([once(count), resamples(count, seed, 3)])
    found = energy_distance(x, y)(weights)
    expected = [plain_energy(x.double(), y.double(), times.tolist()) for times in weights]
    assert found.tolist() == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_energy_distance_has_no_bias():
    """Two sets of one distribution: its mean is 0 within four standard errors."""
    found = torch.stack([energy_distance(drawn(2 * n, 8), drawn(2 * n + 1, 8))(once(8))[0] for n in range(100)])
    assert abs(found.mean()) < 4 * found.std() / 10


@pytest.mark.parametrize("distance", DISTANCES)
def test_the_farther_the_larger(distance):
    x = drawn(0)
    found = [float(distance(x + shift + stretch * x, x)(once(12))) for shift, stretch in ((0, 0), (0.2, 0.1), (1, 0.5))]
    assert found[0] <= 1e-9 < found[1] < found[2]


@pytest.mark.parametrize("distance", [spectrum_error, gram_distance])
def test_what_is_where_does_not_count(distance):
    """Samples in another order, and pictures turned over, look alike to a statistic of style; a blur does not."""
    x = drawn(0)
    assert float(distance(x.flip(0), x)(once(12))) < 1e-9
    blurred = (x + x.roll(1, 3) + x.roll(1, 2)) / 3**0.5
    assert float(distance(blurred, x)(once(12))) > 0.1


def test_spectrum_error_is_in_the_units_that_it_says():
    """A shifted mean counts once of six features in each channel."""
    x = drawn(0)
    x = x - x.mean((0, 2, 3), keepdim=True)  # so that its standard deviation stays as it is in first order
    shifted = x.clone()
    shifted[:, 0] += 1e-3
    assert float(spectrum_error(shifted, x)(once(12))) == pytest.approx(1e-3 / 24, rel=0.05)


def test_gram_distance_is_a_sum_over_places():
    x, y = drawn(0, 2, (1, 3, 3)), drawn(1, 2, (1, 3, 3))

    def gram(samples):
        total = torch.zeros(4, 4, dtype=torch.float64)
        for sample in samples.double():
            for row in range(2):
                for column in range(2):
                    here = sample[0, row, column]
                    vector = torch.stack(
                        [here, sample[0, row, column + 1] - here, sample[0, row + 1, column] - here, torch.ones(())]
                    ).double()
                    total += vector[:, None] * vector / 4 / len(samples)
        return total

    expected = (gram(x) - gram(y)).norm() / gram(y).norm()
    assert float(gram_distance(x, y)(once(2))) == pytest.approx(float(expected))


def test_resamples_draw_with_replacement():
    found = resamples(5)
    assert found.shape == (400, 5)
    assert bool((found.sum(1) == 5).all())
    assert bool((found.max(1).values < 5).all())  # one sample alone has no pairs
    assert torch.equal(found, resamples(5))
    assert not torch.equal(found, resamples(5, seed=1))
    assert bool((resamples(2) > 0).all())


def test_intervals_cover():
    """The mean square of √U is 0.5, and within about 95 % of the intervals of 200 studies."""
    held = 0
    for seed in range(200):
        x = torch.rand((30, 1), generator=torch.Generator().manual_seed(seed)).sqrt()
        found = Estimate.of(paired_error(x, torch.zeros_like(x))(torch.cat([once(30), resamples(30, seed)])))
        held += found.low <= 0.5 <= found.high
    assert 0.88 <= held / 200 <= 0.99

"""What holds for every registered merge method: limits, scales, order; and each one's own formula."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from methodwords import made, most
from peft.utils.merge_utils import dare_linear, dare_ties, magnitude_prune
from torch import Tensor

from lcmmerge.errors import OptionError
from lcmmerge.merge.methods import complete, method, methods

SEED = st.integers(0, 2**32 - 1)
OTHERS = [name for name in methods() if not methods()[name].linear]
# Parameters with which a method is a sum: of nothing that is left out, and of terms at right angles.
NEUTRAL: dict[str, dict[str, float]] = {
    "breadcrumbs": {"density": 1, "gamma": 0},
    "dare": {"density": 1},
    "della": {"density": 1, "epsilon": 0, "elect": 0},
    "magnitude_prune": {"density": 1},
    "norm_cap": {"factor": 100},
    "orthogonal": {},
}


def drawn(seed: int, count: int, *shape: int) -> list[Tensor]:
    return list(torch.randn((count, *shape), generator=torch.Generator().manual_seed(seed), dtype=torch.float64))


def cosine(one: Tensor, other: Tensor) -> float:
    return float((one * other).sum() / (one.norm() * other.norm()))


@given(SEED)
@pytest.mark.parametrize("name", NEUTRAL)
def test_it_is_a_sum_where_nothing_is_left_out(name: str, seed: int) -> None:
    weights, one, other = drawn(seed, 3, 6, 8)
    if name == "orthogonal":
        other -= (other * one).sum() / one.square().sum() * one
    found = made(name, weights, [one, other], [0.8, -0.5], **NEUTRAL[name])
    torch.testing.assert_close(found, weights + 0.8 * one - 0.5 * other)


@given(SEED, st.floats(-3, 3).filter(lambda scale: abs(scale) > 0.01))
@pytest.mark.parametrize("name", OTHERS)
def test_twice_the_changes_move_twice_as_far(name: str, seed: int, scale: float) -> None:
    weights, *deltas = drawn(seed, 1 + most(name, 3), 5, 6)
    zeros, strengths = torch.zeros_like(weights), [1.0, 0.5, 0.25][: len(deltas)]
    once = made(name, zeros, deltas, strengths)
    torch.testing.assert_close(made(name, zeros, [scale * delta for delta in deltas], strengths), scale * once)
    torch.testing.assert_close(made(name, weights, deltas, strengths), weights + once)


@given(SEED)
@pytest.mark.parametrize("name", [name for name in OTHERS if name != "orthogonal"])
def test_the_order_of_terms_does_not_matter(name: str, seed: int) -> None:
    weights, *deltas = drawn(seed, 1 + most(name, 3), 5, 6)
    strengths, names = [1.0, -0.5, 0.25][: len(deltas)], [f"W/{number}" for number in range(len(deltas))]
    found = made(name, weights, deltas, strengths, names)
    torch.testing.assert_close(found, made(name, weights, deltas[::-1], strengths[::-1], names[::-1]))


@pytest.mark.parametrize("rows", [0, 1])
@pytest.mark.parametrize("name", OTHERS)
def test_changes_of_nothing_give_no_nan(name: str, rows: int) -> None:
    if rows and not method(name).weigh:
        return
    weights, delta = drawn(0, 2, 5, 6)
    zeros, options = torch.zeros_like(delta), {"rows": rows} if rows else {}
    for deltas in ([zeros, zeros], [delta, zeros], [zeros, delta]):
        found = made(name, weights, deltas, [1.0, 1.0], **options)
        assert found.isfinite().all()
        if not any(each.any() for each in deltas):
            assert found.equal(weights)


@given(SEED)
def test_magnitude_prune_is_peft_s(seed: int) -> None:
    weights, *deltas = drawn(seed, 3, 5, 6)
    expected = magnitude_prune([0.8 * deltas[0], -0.5 * deltas[1]], torch.ones(2), 0.3)
    found = made("magnitude_prune", torch.zeros_like(weights), deltas, [0.8, -0.5], density=0.3)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(("elect", "theirs"), [(0, dare_linear), (1, dare_ties)])
def test_dare_is_peft_s_on_average(elect: int, theirs: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which numbers PEFT drops comes from torch's own chance: here it gets ours."""
    weights, *deltas = drawn(0, 3, 30, 40)
    masks = iter([method("dare").keep(delta.clone(), complete("dare", {}), f"W/{n}")  # type: ignore[misc]
                  for n, delta in enumerate(deltas)])  # fmt: skip
    monkeypatch.setattr(torch, "bernoulli", lambda *_, **__: next(masks).double())  # type: ignore[union-attr]
    expected = theirs([0.8 * deltas[0], -0.5 * deltas[1]], torch.ones(2), 0.5)
    found = made("dare", torch.zeros_like(weights), deltas, [0.8, -0.5], elect=elect)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("name", ["dare", "della"])
def test_chance_keeps_the_change_on_average(name: str) -> None:
    delta = torch.randn((40, 60), generator=torch.Generator().manual_seed(0))
    zeros, total = torch.zeros_like(delta), torch.zeros_like(delta)
    draws = [made(name, zeros, [delta], [1.0], density=0.4, elect=0, seed=seed) for seed in range(400)]
    for draw in draws:
        total += draw / len(draws)
        assert abs(float((draw != 0).float().mean()) - 0.4) < 0.05
    # The mean of n draws that keep a share p is off by √((1 − p) / (p n)) of the numbers, as seen over all of them.
    assert float((total - delta).norm() / delta.norm()) < 1.2 * (0.6 / 0.4 / len(draws)) ** 0.5
    assert not draws[0].equal(draws[1])
    other = made(name, zeros, [delta], [1.0], ["W/another"], density=0.4, elect=0, seed=0)
    assert not draws[0].equal(other)


def test_della_keeps_the_larger_more_often() -> None:
    delta = torch.arange(1.0, 101.0).repeat(2000, 1)
    kept = made("della", torch.zeros_like(delta), [delta], [1.0], density=0.5, epsilon=0.6, elect=0) / delta
    shares = (kept != 0).float().mean(0)
    expected = 0.5 + 0.6 * ((torch.arange(100) + 0.5) / 100 - 0.5)
    assert (shares - expected).abs().max() < 0.05
    columns = [kept[:, place][kept[:, place] != 0] for place in (0, 50, 99)]
    for place, column in zip((0, 50, 99), columns, strict=True):
        torch.testing.assert_close(column, torch.full_like(column, float(1 / expected[place])))


@given(SEED)
def test_breadcrumbs_leave_out_both_ends(seed: int) -> None:
    (delta,) = drawn(seed, 1, 10, 10)
    found = made("breadcrumbs", torch.zeros_like(delta), [delta], [1.0], density=0.7, gamma=0.1)
    order = delta.abs().flatten().sort().values
    between = (delta.abs() >= order[20]) & (delta.abs() < order[90])
    assert found.equal(delta * between)


@pytest.mark.parametrize(
    ("density", "gamma", "kept"), [(1, 1, 0), (0, 0, 0), (1, 0.5, 50), (0.5, 0.5, 50), (1, 0, 100)]
)
def test_the_ends_of_breadcrumbs_may_meet(density: float, gamma: float, kept: int) -> None:
    (delta,) = drawn(0, 1, 10, 10)
    found = made("breadcrumbs", torch.zeros_like(delta), [delta], [1.0], density=density, gamma=gamma)
    assert int((found != 0).sum()) == kept


@given(SEED, st.floats(-2, 2).filter(bool), st.floats(0.1, 2))
@pytest.mark.parametrize("rows", [0, 1])
def test_norm_cap_keeps_the_direction(rows: int, seed: int, strength: float, factor: float) -> None:
    one, other = drawn(seed, 2, 5, 6)
    other += 2 * one  # one way
    found = made("norm_cap", torch.zeros_like(one), [one, other], [1.0, strength], factor=factor, rows=rows)
    total = one + strength * other
    whole = [each[None] for each in (found, total, one, other)]
    for ours, theirs, first, second in zip(*((found, total, one, other) if rows else whole), strict=True):
        limit = factor * max(float(first.norm()), abs(strength) * float(second.norm()))
        assert cosine(ours, theirs) == pytest.approx(1)
        assert float(ours.norm()) == pytest.approx(min(float(theirs.norm()), limit))


@given(SEED)
@pytest.mark.parametrize("rows", [0, 1])
def test_orthogonal_is_qr(rows: int, seed: int) -> None:
    """Of λ as unit vectors what each term brings; NumPy's QR decomposition has the same directions."""
    deltas = drawn(seed, 3, 4, 6)
    zeros = torch.zeros_like(deltas[0])
    brought = [made("orthogonal", zeros, deltas, strengths, rows=rows)
               for strengths in ([1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0])]  # fmt: skip
    assert brought[0].equal(deltas[0])
    places = range(4) if rows else [slice(None)]
    for place in places:
        columns = torch.stack([delta[place].flatten() for delta in deltas], 1).numpy()
        q, r = np.linalg.qr(columns)
        found = np.stack([each[place].flatten().numpy() for each in brought], 1)
        np.testing.assert_allclose(found, q * np.diag(r), atol=1e-9)


def test_a_term_along_an_earlier_one_counts_once() -> None:
    (one,) = drawn(0, 1, 4, 6)
    found = made("orthogonal", torch.zeros_like(one), [one, 3 * one, -one], [1.0, 1.0, 1.0])
    torch.testing.assert_close(found, one)


@given(SEED, st.floats(0.01, 0.99))
def test_slerp_keeps_the_length_of_two_of_one(seed: int, share: float) -> None:
    one, other = (each / each.norm() for each in drawn(seed, 2, 4, 6))
    found = made("slerp", torch.zeros_like(one), [one, other], [1 - share, share])
    assert float(found.norm()) == pytest.approx(1)
    angle = np.arccos(cosine(one, other))
    assert np.arccos(np.clip(cosine(one, found), -1, 1)) == pytest.approx(share * angle, abs=1e-6)
    twice = made("slerp", torch.zeros_like(one), [one, -other], [2 - 2 * share, -2 * share])
    torch.testing.assert_close(twice, 2 * found)


@pytest.mark.parametrize("factor", [2.0, -2.0])
def test_slerp_along_one_line_is_a_sum(factor: float) -> None:
    (one,) = drawn(0, 1, 4, 6)
    found = made("slerp", torch.zeros_like(one), [one, factor * one], [0.5, 0.25])
    torch.testing.assert_close(found, (0.5 + 0.25 * factor) * one)


def test_what_is_out_of_bounds_is_refused() -> None:
    with pytest.raises(OptionError, match="density is 0"):
        complete("dare", {"density": 0})

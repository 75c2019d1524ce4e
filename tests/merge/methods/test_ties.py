"""TIES-Merging against PEFT's, and its laws."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from fusing import Files, assert_same, canonical, fuse, load
from hypothesis import given
from hypothesis import strategies as st
from peft.utils.merge_utils import magnitude_based_pruning, ties
from safetensors.torch import load_file, save_file
from torch import Tensor

from lcmmerge.errors import NoEffectError
from lcmmerge.merge.methods.ties import combine, keep

Fused = Callable[..., dict[str, Tensor]]
DENSITY = st.floats(0, 1)
SEED = st.integers(0, 2**32 - 1)


def drawn(seed: int, *shape: int, largest: int = 4) -> Tensor:
    """Eighths, of which many are equal in magnitude and sums are exact."""
    return torch.randint(-largest, largest + 1, shape, generator=torch.Generator().manual_seed(seed)) / 8


def merged(deltas: list[Tensor], strengths: list[float], density: float) -> Tensor:
    kept = [keep(delta.clone(), {"density": density}) for delta in deltas]
    parts = [delta.clone() if mask is None else delta * mask for delta, mask in zip(deltas, kept, strict=True)]
    return combine(torch.zeros_like(deltas[0]), parts, strengths, {})


@pytest.fixture
def fused(files: Callable[[str], Files], tmp_path: Path) -> Fused:
    """Onto a base of zeros a merge is what is added, to the bit."""
    base = tmp_path / "zeros.safetensors"
    save_file({name: torch.zeros_like(tensor) for name, tensor in load_file(files("sd1").base("fp32")).items()}, base)

    def run(*terms: tuple[Path, float], method: str = "add") -> dict[str, Tensor]:
        target = tmp_path / "fused.safetensors"
        fuse(base, target, adapters=terms, method=method, force=True)
        return canonical(target)

    return run


@pytest.mark.parametrize("strengths", [(1.0, 1.0), (0.8, 0.4), (1.0, -0.7)])
def test_a_fuse_equals_peft_s_of_the_weighted_terms(
    strengths: tuple[float, float], files: Callable[[str], Files], fused: Fused
) -> None:
    inputs = files("sd1")
    terms = list(zip((inputs.style, inputs.lcm), strengths, strict=True))
    alone = [fused((path, 1.0)) for path, _ in terms]
    for name, tensor in fused(*terms, method="ties:density=0.3").items():
        reaching = [(found[name], λ) for found, λ in zip(alone, strengths, strict=True) if found[name].any()]
        if not reaching:
            assert not tensor.any()
            continue
        tensors, ones = [λ * delta for delta, λ in reaching], torch.ones(len(reaching))
        torch.testing.assert_close(tensor, ties(tensors, ones, 0.3), rtol=1e-5, atol=1e-8, msg=name)
        if len(set(strengths)) == 1:  # then PEFT's own weights are these
            same = ties([delta for delta, _ in reaching], torch.tensor([λ for _, λ in reaching]), 0.3)
            torch.testing.assert_close(tensor, same, rtol=1e-5, atol=1e-8, msg=name)


@given(SEED, DENSITY)
def test_exactly_the_largest_are_kept(seed: int, density: float) -> None:
    delta = drawn(seed, 9, 11)
    mask = keep(delta.clone(), {"density": density})
    kept = delta if mask is None else delta * mask
    expected = magnitude_based_pruning(delta, density)
    assert kept.abs().flatten().sort().values.equal(expected.abs().flatten().sort().values)
    assert kept[kept != 0].equal(delta[kept != 0])


def test_of_equal_ones_the_first_are_kept() -> None:
    mask = keep(torch.tensor([[1.0, -2.0, 2.0], [2.0, 0.0, -2.0]]), {"density": 0.5})
    assert mask is not None
    assert mask.tolist() == [[False, True, True], [True, False, False]]


def test_a_transposed_change_is_trimmed_as_it_reads() -> None:
    """A view of what a checkpoint stores as [in, out]."""
    delta = drawn(0, 6, 8).T
    masks = [keep(change, {"density": 0.4}) for change in (delta.clone(), delta.contiguous().clone())]
    assert masks[0] is not None and masks[1] is not None
    assert masks[0].equal(masks[1])


@given(SEED, DENSITY, st.permutations(range(3)))
def test_the_order_of_terms_does_not_matter(seed: int, density: float, order: list[int]) -> None:
    deltas, strengths = list(drawn(seed, 3, 5, 6)), [0.5, -1.0, 2.0]
    expected = merged(deltas, strengths, density)
    assert merged([deltas[n] for n in order], [strengths[n] for n in order], density).equal(expected)


@given(SEED, st.floats(-2, 2, width=32))
def test_one_term_of_density_one_is_added(seed: int, strength: float) -> None:
    delta = drawn(seed, 5, 6, largest=99)
    torch.testing.assert_close(merged([delta], [strength], 1.0), strength * delta)


def test_density_one_of_one_adapter_is_add(files: Callable[[str], Files], fused: Fused) -> None:
    style = files("sd1").style
    expected = fused((style, 0.7))
    for name, tensor in fused((style, 0.7), method="ties:density=1").items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-5, atol=1e-7)


def test_a_term_of_λ_0_takes_no_part(files: Callable[[str], Files], fused: Fused) -> None:
    inputs = files("sd1")
    assert_same(
        fused((inputs.style, 0.7), (inputs.lcm, 0.0), method="ties"), fused((inputs.style, 0.7), method="ties")
    )


def test_a_half_precision_checkpoint_is_trimmed_exactly(files: Callable[[str], Files], tmp_path: Path) -> None:
    """Differences of fp16 have many equal magnitudes: as many are kept as the density says, of every parameter."""
    inputs = files("sd1")
    tuned, target = tmp_path / "tuned.safetensors", tmp_path / "out.safetensors"
    fuse(inputs.base(), tuned, inputs.style)
    zeros = {name: torch.zeros_like(tensor) for name, tensor in load(inputs.base()).items()}
    save_file(zeros, tmp_path / "zeros.safetensors")
    fuse(tmp_path / "zeros.safetensors", target, tuned, tuned_from=inputs.base(), method="ties:density=0.25")
    before, after, found = canonical(inputs.base()), canonical(tuned), canonical(target)
    for name, tensor in found.items():
        changed = int((after[name] != before[name]).sum())
        assert int((tensor != 0).sum()) == min(changed, tensor.numel() // 4), name


def test_a_report_has_what_is_kept(files: Callable[[str], Files], tmp_path: Path) -> None:
    inputs = files("sd1")
    whole, trimmed = (
        fuse(inputs.base("fp32"), tmp_path / f"{density}.safetensors", inputs.style, method=f"ties:density={density}")
        for density in (1, 0.2)
    )
    assert trimmed.method == "ties:density=0.2"
    for row, before in zip(trimmed.rows, whole.rows, strict=True):
        assert 0.4 * before.relative < row.relative < 0.9 * before.relative  # a fifth of the numbers
    with pytest.raises(NoEffectError, match=r"density=0\.0 keeps nothing"):
        fuse(inputs.base("fp32"), tmp_path / "none.safetensors", inputs.style, method="ties:density=0")

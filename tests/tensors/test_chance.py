"""Chance by name: what masks, stochastic rounding and low-rank starts are drawn from."""

from __future__ import annotations

import torch

from lcmmerge.tensors.chance import generator_of


def test_a_name_has_its_own_numbers_and_ever_the_same() -> None:
    drawn = [torch.rand(4, generator=generator_of(name)) for name in ("one", "one", "other")]
    assert drawn[0].equal(drawn[1])
    assert not drawn[0].equal(drawn[2])
    # BLAKE2b's digest of seven bytes as a number: files that were written with it are verified by it.
    assert generator_of("0/unet.conv_in.weight/0").initial_seed() == 64905539130083163

"""θ(λ) in a live pipeline is the baked checkpoint, for every algorithm, after any number of cells."""

import random
from dataclasses import replace
from itertools import product

import pytest
import torch
from adapterfile import write
from fusing import canonical, fuse
from pico import pico
from sampling import assert_alike, drawn, images, one, pipeline, preset
from searching import ADAPTERS, CONV, KINDS, adapter, assert_baked, field_of, noise, planned, state, weights
from torch import nn

from lcmmerge.adapters import algorithms
from lcmmerge.errors import NumericError
from lcmmerge.search.blocks import pieces
from lcmmerge.search.field import LiveParameter, reached
from lcmmerge.search.order import Cell, ordered
from lcmmerge.tensors import DTYPES
from lcmmerge.tensors.encodings import MAIN, Encoding


def test_every_algorithm_is_among_the_adapters():
    assert ADAPTERS.keys() == algorithms().keys()


@pytest.mark.parametrize("kinds", KINDS)
def test_weights_are_the_baked_ones(kinds, files, tmp_path):
    """At λ = 0 the base's."""
    inputs, (style, *more) = files("sd1"), [adapter(kind, tmp_path) for kind in kinds]
    strengths = [0.5 + 0.1 * number for number in range(len(more))]
    fuse(inputs.base("fp32"), tmp_path / "baked.safetensors", style, inputs.lcm, (0.7, -0.4),
         adapters=tuple(zip(more, strengths, strict=True)))  # fmt: skip
    expected, base = canonical(tmp_path / "baked.safetensors"), canonical(inputs.base("fp32"))
    field = field_of(inputs, style=style, adapters=tuple((str(path), 1.0) for path in more))
    field.set(Cell((0.7, -0.4, *strengths)))
    assert_baked(weights(field), expected, "fp32")
    field.set(Cell((0.0,) * (2 + len(more))))
    assert all(torch.equal(tensor, base[name]) for name, tensor in weights(field).items())


@pytest.mark.e2e
def test_images_are_the_baked_ones(files, tmp_path):
    """From a base in float16, and with a whole checkpoint as one of three terms: within one of 255 levels."""
    inputs = files("sd1")
    tuned = pico("sd1", seed=1).single_file(tmp_path / "tuned.safetensors")
    fuse(inputs.base(), tmp_path / "baked.safetensors", inputs.style, inputs.lcm, adapters=((tuned, 0.3),))
    baked = pipeline(tmp_path / "baked.safetensors", inputs.folder())
    field = field_of(inputs, "fp16", adapters=((str(tuned), 1.0),))
    field.set(Cell((0.8, 1.0, 0.3)))
    assert_baked(weights(field), canonical(tmp_path / "baked.safetensors"), "fp16")
    chosen = preset(inputs.folder(), scheduler="lcm", steps=4)
    assert_alike(images(drawn(field.pipeline, [one()], chosen)), images(drawn(baked, [one()], chosen)))


def test_nothing_drifts(files):
    field = field_of(files("sd1"), "fp16")
    field.set(Cell((0.8, 1.0)))
    first = state(field.pipeline)
    generator = random.Random(0)
    for _ in range(50):
        field.set(Cell((generator.uniform(-2, 2), generator.uniform(-2, 2))))
    field.set(Cell((0.8, 1.0)))
    assert all(torch.equal(tensor, first[name]) for name, tensor in state(field.pipeline).items())


def test_block_weights_count(files, tmp_path):
    inputs, factors = files("sd1"), {"style": "IN01=0.5,BASE=0", "lcm": "OUT00-OUT11=0"}
    fuse(inputs.base(), tmp_path / "baked.safetensors", inputs.style, inputs.lcm, block_weights=factors)
    field = field_of(inputs, "fp16", block_weights=factors)
    assert field.text_key(Cell((0.8, 1.0))) == ()
    field.set(Cell((0.8, 1.0)))
    assert_baked(weights(field), canonical(tmp_path / "baked.safetensors"), "fp16")


def test_a_lambda_that_overflows_is_refused_and_the_next_cell_is_whole(files):
    field = field_of(files("sd1"), "fp16")
    field.set(Cell((0.8, 1.0)))
    first = state(field.pipeline)
    with pytest.raises(NumericError):
        field.set(Cell((0.8, 1e9)))
    with pytest.raises(NumericError):
        field.set(Cell((float("nan"), 1.0)))
    field.set(Cell((0.8, 1.0)))
    assert all(torch.equal(tensor, first[name]) for name, tensor in state(field.pipeline).items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_what_an_encoding_keeps_is_what_is_drawn(dtype, files):
    steps = Encoding(
        "steps of 1/64", DTYPES["I8"], lambda rows, parts, generator, peak: parts[MAIN].copy_((rows * 64).round()),
        lambda parts: parts[MAIN].float() / 64,
    )  # fmt: skip
    inputs = files("sd1")
    piece = next(pieces(planned(inputs.base("fp32"), inputs.style, inputs.lcm)))
    exact, kept = (nn.Parameter(torch.empty(piece.operand.shape, dtype=each)) for each in (torch.float32, dtype))
    for stored, module in ((piece, exact), (replace(piece, encoding=steps), kept)):
        LiveParameter.of(stored, module, {}).write(Cell((0.8, 1.0)))
    assert torch.equal(kept.float() * 64, (exact * 64).round())
    assert not torch.equal(kept.float(), exact)


def test_what_the_text_encoders_depend_on(files, tmp_path):
    """The pico's style reaches them, its LCM-LoRA does not."""
    field = field_of(files("sd1"))
    assert field.text_key(Cell((0.5, 0.1))) == field.text_key(Cell((0.5, 0.9))) != field.text_key(Cell((0.6, 0.1)))
    unet_only = write(
        tmp_path / "unet.safetensors",
        {f"{CONV}.lora_up.weight": noise(32, 3, 1, 1), f"{CONV}.lora_down.weight": noise(3, 64, 3, 3)},
    )
    assert field_of(files("sd1"), style=unet_only.path).text_key(Cell((0.5, 0.1))) == ()


def test_the_order_is_of_what_was_measured(files):
    """The pico's LCM-LoRA reaches more than its style, so that it changes most seldom, and 0, which is set, first."""
    inputs = files("sd1")
    plan = planned(inputs.base(), inputs.style, inputs.lcm)
    found = ordered(map(Cell, product((0.5, 1.0), (0.0, 0.5, 1.0))), reached(plan), Cell((0.0, 0.0)))
    assert [cell.lambdas for cell in found] == [(0.5, 0.0), (1.0, 0.0), (1.0, 0.5), (0.5, 0.5), (0.5, 1.0), (1.0, 1.0)]

"""A term's D: what it adds to a parameter at λ = 1, also where several terms reach the parameter."""

import pytest
import torch
from adapterfile import assert_near, delta
from fusing import canonical
from pico import pico
from searching import ADAPTERS, CPU, adapter, planned

from lcmmerge.adapters import read_adapter
from lcmmerge.archs import identify, names_of
from lcmmerge.search.changes import Change
from lcmmerge.tensors import open_source


def changes(plan, term):
    """Canonical name → (W₀, the term's change)."""
    return {
        piece.operand.name: (piece.operand.read(), Change.of(piece, term, CPU))
        for file in plan.files
        for tensor in file.tensors
        for piece in tensor.pieces
        if any(item.term == term for item in piece.contributions)
    }


@pytest.mark.parametrize("kind", ADAPTERS)
def test_an_adapters_change_is_its_update(kind, files, tmp_path):
    inputs, style = files("sd1"), adapter(kind, tmp_path)
    found = changes(planned(inputs.base(), style, inputs.lcm), 0)
    names = names_of(identify(open_source(inputs.base())).arch)
    found_of = read_adapter(open_source(style)).patches
    patches = {f"{names.find(patch.key).module}.{patch.parameter}": patch for patch in found_of}
    assert {name for name, patch in patches.items() if not patch.optional} <= found.keys() <= patches.keys()
    assert found
    for name, (pristine, change) in found.items():
        expected = delta(patches[name], pristine.float())
        assert_near(change.dense(pristine), expected)
        assert (change.factors is not None) == (kind in ("lora", "lora_bias") and pristine.dim() > 1)
        if change.factors:
            added = pristine.float()
            change.add_to(added, -0.5)
            assert_near(added, pristine.float() - 0.5 * expected)


def test_a_checkpoints_change_is_the_difference(files, tmp_path):
    tuned = pico("sd1", seed=1).single_file(tmp_path / "tuned.safetensors")
    found = changes(planned(files("sd1").folder(), tuned, None), 0)
    before, after = canonical(files("sd1").base()), canonical(tuned)
    for name in ("vae.encoder.conv_in.weight", "unet.conv_in.bias", "text_encoder.text_model.final_layer_norm.weight"):
        pristine, change = found[name]
        assert torch.equal(change.dense(pristine), after[name].float() - before[name].float())


def test_block_weights_are_part_of_it(files):
    inputs = files("sd1")
    whole = changes(planned(inputs.base(), inputs.style, inputs.lcm), 1)
    half = changes(planned(inputs.base(), inputs.style, inputs.lcm, block_weights={"lcm": "IN01=0.5"}), 1)
    name = "unet.down_blocks.0.attentions.0.proj_in.weight"
    assert_near(half[name][1].dense(half[name][0]), 0.5 * whole[name][1].dense(whole[name][0]))

"""The way to draw is chosen by what was measured, and where a way is barred that is said."""

import torch
from sampling import preset, several
from searching import adapter, field_of, state

from lcmmerge.studies import cost
from lcmmerge.studies.cost import DELTAS, FACTORS, PER_SAMPLE
from lcmmerge.studies.drawing import OneByOne, Together


def test_the_cheapest_is_taken_and_the_weights_are_left_alone(files):
    inputs = files("sd1")
    field, chosen = field_of(inputs), preset(inputs.folder(), scheduler="lcm", steps=1)
    before = state(field.pipeline)
    way, choice = cost.choose(field, tuple(several("a fox")), chosen, 4)
    assert choice.seconds.keys() == {DELTAS, FACTORS, PER_SAMPLE}
    assert choice.way == min(choice.seconds, key=choice.seconds.get)
    assert isinstance(way, Together if choice.way == PER_SAMPLE else OneByOne)
    assert way.at_once == (4 if choice.way == PER_SAMPLE else 1)
    assert str(choice).startswith(f"{choice.way}: a cell takes, as measured, ")
    assert all(torch.equal(tensor, before[name]) for name, tensor in state(field.pipeline).items())
    assert bool(sum(part.factored for part in field.parts)) == (choice.way != DELTAS)


def test_what_is_no_lora_is_not_drawn_per_sample(files, tmp_path):
    inputs = files("sd1")
    field = field_of(inputs, style=adapter("ia3", tmp_path))
    chosen = preset(inputs.folder(), scheduler="lcm", steps=1)
    _, choice = cost.choose(field, tuple(several("a fox")), chosen, 4)
    assert choice.seconds.keys() == {DELTAS, FACTORS}
    assert "no product of two factors" in choice.ruled_out[PER_SAMPLE]
    assert choice.ruled_out[PER_SAMPLE] in str(choice)



"""The way to draw is chosen by what was measured, where that can pay; where a way is barred that is said."""

import pytest
import torch
from sampling import preset, several
from searching import adapter, field_of, state

from lcmmerge.errors import NumericError
from lcmmerge.studies import cost
from lcmmerge.studies.cost import DELTAS, FACTORS, PER_SAMPLE
from lcmmerge.studies.drawing import OneByOne, Together

MANY, FEW = 1000, 14  # cells


def test_what_is_chosen_is_ready_and_the_weights_are_left_alone(files):
    inputs = files("sd1")
    field, chosen = field_of(inputs), preset(inputs.folder(), scheduler="lcm", steps=1)
    before = state(field.pipeline)
    way, choice = cost.choose(field, tuple(several("a fox")), chosen, 4, MANY)
    assert choice.seconds.keys() == {FACTORS, DELTAS, PER_SAMPLE} - choice.ruled_out.keys()
    assert PER_SAMPLE in choice.seconds
    assert all(seconds > 0 for seconds in choice.seconds.values())
    assert choice.way == cost.clearly_fastest(choice.seconds)
    assert isinstance(way, Together if choice.way == PER_SAMPLE else OneByOne)
    assert way.at_once == (4 if choice.way == PER_SAMPLE else 1)
    assert str(choice).startswith(f"{choice.way}: a cell takes, as measured, factors ")
    assert all(torch.equal(tensor, before[name]) for name, tensor in state(field.pipeline).items())
    assert bool(sum(part.factored for part in field.parts)) == (choice.way != DELTAS)


@pytest.mark.parametrize(("seconds", "chosen"), [
    ({FACTORS: 0.62, PER_SAMPLE: 0.64}, FACTORS),
    ({FACTORS: 0.62, DELTAS: 0.58, PER_SAMPLE: 0.57}, FACTORS),  # what 8 % are may be noise
    ({FACTORS: 0.62, DELTAS: 0.5}, DELTAS),
    ({FACTORS: 0.62, DELTAS: 0.5, PER_SAMPLE: 0.48}, DELTAS),
    ({FACTORS: 0.62, DELTAS: 0.5, PER_SAMPLE: 0.2}, PER_SAMPLE),
    ({FACTORS: 0.62, DELTAS: 0.6, PER_SAMPLE: 0.5}, PER_SAMPLE),
])  # fmt: skip
def test_a_way_that_needs_more_is_to_be_clearly_faster(seconds, chosen):
    assert cost.clearly_fastest(seconds) == chosen


def test_for_few_cells_nothing_is_tried(files):
    inputs = files("sd1")
    field, drawn = field_of(inputs), []
    field.pipeline.unet.register_forward_hook(lambda *_: drawn.append(1))
    way, choice = cost.choose(field, tuple(several("a fox")), preset(inputs.folder(), steps=1), 4, FEW)
    assert isinstance(way, OneByOne)
    assert (choice.way, choice.seconds, drawn) == (FACTORS, {}, [])
    assert choice.ruled_out.keys() == {DELTAS, PER_SAMPLE}
    assert str(choice).startswith("factors; not deltas: for 14 cells a trial would take more than it could save; not ")


def test_where_sharing_could_not_pay_it_is_not_tried(files):
    """Three passes of 64 images are the cost of 192 cells."""
    inputs = files("sd1")
    _, choice = cost.choose(field_of(inputs), tuple(several("a fox")), preset(inputs.folder(), steps=1), 64, 2 * FEW)
    assert PER_SAMPLE in choice.ruled_out
    assert FACTORS in choice.seconds


def test_a_term_that_cannot_be_written_at_its_whole_strength_is_no_obstacle(files):
    """The trials' λs are faint."""
    inputs = files("sd1")
    field = field_of(inputs, "fp16")
    for change in field.parts[0].changes.values():
        change.factors[0].mul_(1e7)
    with pytest.raises(NumericError):
        field.set(field.ones)
    field.set(field.zeros)
    chosen = preset(inputs.folder(), scheduler="lcm", steps=1)
    _, choice = cost.choose(field, tuple(several("a fox")), chosen, 2, MANY)
    assert PER_SAMPLE in choice.seconds


def test_what_is_no_lora_is_not_drawn_per_sample(files, tmp_path):
    inputs = files("sd1")
    field = field_of(inputs, style=adapter("ia3", tmp_path))
    chosen = preset(inputs.folder(), scheduler="lcm", steps=1)
    _, choice = cost.choose(field, tuple(several("a fox")), chosen, 4, MANY)
    assert choice.seconds.keys() <= {DELTAS, FACTORS}
    assert "no product of two factors" in choice.ruled_out[PER_SAMPLE]
    assert choice.ruled_out[PER_SAMPLE] in str(choice)

"""A cell's images are the baked model's, whatever algorithm the style's file is of."""

import copy

import pytest
from adapterfile import write
from fusing import canonical, fuse
from sampling import assert_alike, drawn, images, one, preset
from searching import ADAPTERS, CONV, OUT, noise, pipeline_of, planned

from lcmmerge.adapters import algorithms
from lcmmerge.draw.load import canonical as named
from lcmmerge.search.drawing import Drawing, FieldDrawer
from lcmmerge.search.field import Field
from lcmmerge.search.order import Cell
from lcmmerge.search.study import CELL

pytestmark = pytest.mark.e2e

# Forms of the same algorithms that take another path to ΔW.
FORMS = {
    "conv": {f"{CONV}.lora_up.weight": noise(32, 3, 1, 1), f"{CONV}.lora_down.weight": noise(3, 64, 3, 3)},
    "tucker": {
        f"{CONV}.lora_up.weight": noise(32, 4, 1, 1), f"{CONV}.lora_mid.weight": noise(4, 3, 3, 3),
        f"{CONV}.lora_down.weight": noise(3, 64, 1, 1),
    },
    "loha-tucker": {
        f"{CONV}.hada_t1": noise(4, 4, 3, 3), f"{CONV}.hada_w1_a": noise(4, 32), f"{CONV}.hada_w1_b": noise(4, 64),
        f"{CONV}.hada_t2": noise(4, 4, 3, 3), f"{CONV}.hada_w2_a": noise(4, 32), f"{CONV}.hada_w2_b": noise(4, 64),
    },
    "lokr-conv": {f"{CONV}.lokr_w1": noise(4, 4), f"{CONV}.lokr_w2_a": noise(8, 2), f"{CONV}.lokr_w2_b": noise(2, 144)},
    "dora-linear": {
        f"{OUT}.lora_up.weight": noise(32, 3), f"{OUT}.lora_down.weight": noise(3, 32),
        f"{OUT}.dora_scale": 1 + noise(32, 1),
    },
}  # fmt: skip
KINDS = ADAPTERS | FORMS
STRENGTHS = (40.0, 0.7)  # of the style so much that the weakest of these adapters can be seen
EXACT = 5e-6  # of the latents' norm: float32's last bits, through two steps


@pytest.fixture(scope="module")
def live(files):
    """The base, drawing; every field writes into it and leaves it as it was."""
    inputs = files("sd1")
    return pipeline_of(planned(inputs.base("fp32"), inputs.style, inputs.lcm), inputs.folder())


@pytest.fixture(scope="module")
def other(live):
    """A pipeline of its own, for baked weights."""
    return copy.deepcopy(live)


@pytest.fixture(scope="module")
def few(files):
    return preset(files("sd1").folder(), scheduler="lcm", steps=2)


@pytest.fixture(scope="module")
def unstyled(files, live, few):
    inputs = files("sd1")
    field = Field(planned(inputs.base("fp32"), inputs.style, inputs.lcm), live)
    (found,) = FieldDrawer(field, 1)([Drawing(CELL, Cell((0.0, STRENGTHS[1])), few, (one(),))])
    field.set(Cell((0.0, 0.0)))
    return found.latents[0]


def put(weights, pipe):
    """A checkpoint's weights, by canonical name, into a pipeline."""
    for component in ("unet", "text_encoder"):
        module = getattr(pipe, component)
        module.load_state_dict({name: weights[named(component, name)] for name in module.state_dict()})


@pytest.mark.parametrize("kind", KINDS)
def test_images_are_the_baked_models(kind, files, live, other, few, unstyled, tmp_path):
    """By the field, and as a study draws them."""
    inputs, style = files("sd1"), write(tmp_path / f"{kind}.safetensors", KINDS[kind]).path
    fuse(inputs.base("fp32"), tmp_path / "baked.safetensors", style, inputs.lcm, STRENGTHS)
    put(canonical(tmp_path / "baked.safetensors"), other)
    (baked,) = drawn(other, [one()], few)
    field = Field(planned(inputs.base("fp32"), style, inputs.lcm), live)
    field.set(Cell(STRENGTHS))
    (cell,) = drawn(live, [one()], few)
    field.set(Cell((0.0, 0.0)))
    (studied,) = FieldDrawer(field, 1)([Drawing(CELL, Cell(STRENGTHS), few, (one(),))])
    field.set(Cell((0.0, 0.0)))
    assert_alike(images([cell]), images([baked]))
    norm = baked.latents.norm()
    assert (cell.latents - baked.latents).norm() <= EXACT * norm
    assert (studied.latents[0] - baked.latents).norm() <= EXACT * norm
    assert (unstyled - baked.latents).norm() > 10 * EXACT * norm


def test_every_algorithm_is_among_them():
    assert KINDS.keys() >= algorithms().keys()

"""What every registered algorithm must keep to."""

from dataclasses import replace
from math import prod
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lcmmerge.adapters import Dense, Dependent, Factored, Patch, algorithm, algorithms
from lcmmerge.errors import FormatError
from lcmmerge.tensors import DTYPES, TensorInfo

LINEAR, CONV, BIAS = (8, 12), (8, 12, 3, 3), (8,)
OFT_CONFIG = {"coft": False, "eps": 1e-4, "use_cayley_neumann": True, "num_cayley_neumann_terms": 5}
LOHA = {"hada_w1_a": (8, 3), "hada_w1_b": (3, 12), "hada_w2_a": (8, 3), "hada_w2_b": (3, 12)}
LOHA_TUCKER = {
    "hada_w1_a": (3, 8), "hada_w1_b": (3, 12), "hada_t1": (3, 3, 3, 3),
    "hada_w2_a": (3, 8), "hada_w2_b": (3, 12), "hada_t2": (3, 3, 3, 3),
}  # fmt: skip

# (algorithm, the parameter's shape, its tensors' shapes): every combination of roles that a file may hold.
EXAMPLES = [
    ("lora", LINEAR, {"up": (8, 3), "down": (3, 12)}),
    ("lora", CONV, {"up": (8, 3, 1, 1), "down": (3, 12, 3, 3), "scalar": ()}),
    ("lora", CONV, {"up": (8, 3, 1, 1), "mid": (3, 3, 3, 3), "down": (3, 12, 1, 1)}),
    ("lora_bias", BIAS, {"up_bias": (8,), "down": (3, 12)}),
    ("dora", LINEAR, {"up": (8, 3), "down": (3, 12), "magnitude": (8,)}),
    ("dora", CONV, {"up": (8, 3), "down": (3, 108), "dora_scale": (1, 12, 1, 1)}),
    ("dora", LINEAR, LOHA | {"dora_scale": (8, 1)}),
    ("dora", LINEAR, {"lokr_w1": (2, 3), "lokr_w2": (4, 4), "dora_scale": (8, 1)}),
    ("loha", LINEAR, LOHA),
    ("loha", CONV, LOHA_TUCKER),
    ("lokr", LINEAR, {"lokr_w1": (2, 3), "lokr_w2": (4, 4)}),
    ("lokr", CONV, {"lokr_w1_a": (2, 1), "lokr_w1_b": (1, 3), "lokr_w2": (4, 4, 3, 3)}),
    ("lokr", CONV, {"lokr_w1": (2, 3), "lokr_w2_a": (4, 2), "lokr_w2_b": (2, 36)}),
    ("lokr", CONV, {"lokr_w1": (2, 3), "lokr_w2_a": (2, 4), "lokr_w2_b": (2, 4), "lokr_t2": (2, 2, 3, 3)}),
    ("oft", CONV, {"oft_blocks": (4, 2, 2), "rescale": (8, 1, 1, 1)}),
    ("oft", LINEAR, {"oft_blocks": (4, 2, 2)}),
    ("oft", LINEAR, {"oft_R": (3, 6)}),
    ("boft", LINEAR, {"boft_blocks": (3, 4, 2, 2)}),
    ("boft", CONV, {"boft_blocks": (2, 2, 4, 4), "rescale": (8, 1, 1, 1)}),
    ("boft", LINEAR, {"boft_R": (2, 6, 2, 2), "boft_s": (8, 1)}),
    ("ia3", LINEAR, {"scale_in": (1, 12)}),
    ("ia3", BIAS, {"scale_out": (8, 1)}),
    ("ia3", CONV, {"shift_in": (1, 12, 1, 1)}),
    ("ia3", LINEAR, {"shift_out": (8,)}),
    ("glora", CONV, {"a1": (12, 3, 1, 1), "a2": (3, 12, 1, 1), "b1": (8, 3, 1, 1), "b2": (3, 12, 3, 3)}),
    ("full", LINEAR, {"diff": (8, 12, 1, 1)}),
    ("full", BIAS, {"diff_b": (8,)}),
    ("norm", BIAS, {"w_norm": (8,)}),
    ("norm", BIAS, {"b_norm": (8,)}),
]


def info(role: str, shape: tuple[int, ...]) -> TensorInfo:
    return TensorInfo(role, DTYPES["F32"], shape, Path("unread"), 0, 4 * prod(shape))


def patch_of(shapes: dict[str, tuple[int, ...]]) -> Patch:
    roles = {role: info(role, shape) for role, shape in shapes.items()}
    return Patch("module", "weight", roles, 2.0, config=OFT_CONFIG if "oft_R" in shapes else {})


def delta(patch: Patch, shape: tuple[int, ...]) -> torch.Tensor:
    _, adapter = algorithm(patch)
    generator = torch.Generator().manual_seed(0)
    tensors = {role: torch.rand(stored.shape, generator=generator) for role, stored in patch.roles.items()}
    weight = torch.rand(shape, generator=generator)
    match adapter.update(patch, tensors, shape):
        case Factored(up, down):
            assert up.dtype == down.dtype == torch.float32
            return (up @ down).reshape(shape)
        case Dense(difference):
            return difference
        case Dependent(delta_of):
            return delta_of(weight)


def test_every_algorithm_has_an_example():
    assert {name for name, _, _ in EXAMPLES} == set(algorithms())


@pytest.mark.parametrize("name", algorithms())
def test_says_what_it_is_and_where_it_is_from(name):
    adapter = algorithms()[name]
    assert adapter.title
    assert adapter.source.startswith("https://")


@pytest.mark.parametrize(("name", "shape", "stored"), EXAMPLES)
def test_exactly_one_algorithm_claims(name, shape, stored):
    assert [other for other, adapter in algorithms().items() if adapter.claims(frozenset(stored))] == [name]


@pytest.mark.parametrize("roles", [{"up"}, {"up", "down", "diff"}, {"mid"}, {"rescale"}, {"lokr_w1"}, {"dora_scale"}])
def test_roles_of_no_algorithm_are_an_error_that_names_them(roles):
    with pytest.raises(FormatError) as caught:
        algorithm(patch_of(dict.fromkeys(roles, (1, 1))))
    assert all(role in caught.value.message for role in roles)


@pytest.mark.parametrize(("name", "shape", "stored"), EXAMPLES)
def test_update_is_deterministic_float32_of_the_parameters_shape(name, shape, stored):
    patch = patch_of(stored)
    assert algorithms()[name].fit(patch, shape) == ""
    found = delta(patch, shape)
    assert found.shape == shape
    assert found.dtype == torch.float32
    assert found.norm() > 0
    assert torch.equal(found, delta(patch, shape))


@pytest.mark.parametrize(("name", "shape", "stored"), EXAMPLES)
def test_update_leaves_the_tensors_and_the_weight_alone(name, shape, stored):
    tensors = {role: torch.rand(size) for role, size in stored.items()}
    weight = torch.rand(shape)
    before = {role: tensor.clone() for role, tensor in tensors.items()} | {"": weight.clone()}
    update = algorithms()[name].update(patch_of(stored), tensors, shape)
    if isinstance(update, Dependent):
        update.delta_of(weight)
    assert all(torch.equal(tensor, before[role]) for role, tensor in (tensors | {"": weight}).items())


@pytest.mark.parametrize(("name", "shape", "stored"), EXAMPLES)
def test_a_tensor_of_another_size_does_not_fit(name, shape, stored):
    for role, size in stored.items():
        if (name, role) == ("lora_bias", "down"):  # it only tells the rank
            continue
        for axis in range(len(size)):
            changed = (*size[:axis], size[axis] * 5, *size[axis + 1 :])
            assert algorithms()[name].fit(patch_of({**stored, role: changed}), shape), (role, axis)


@settings(deadline=None, max_examples=400)
@given(st.data())
def test_what_fits_can_be_applied(data):
    """Any shapes: either ``fit`` says what is wrong, or ``update`` works."""
    name, shape, stored = data.draw(st.sampled_from(EXAMPLES))
    target = data.draw(st.sampled_from(["parameter", *stored]))
    anything = st.lists(st.sampled_from([0, 1, 2, 3, 4, 6, 8, 12]), max_size=5)
    reordered = st.permutations(shape if target == "parameter" else stored[target])
    drawn = tuple(data.draw(anything | reordered))
    if target == "parameter":
        shape = drawn
    else:
        stored = {**stored, target: drawn}
    patch = patch_of(stored)
    problem = algorithms()[name].fit(patch, shape)
    assert "\n" not in problem
    if not problem:
        assert delta(patch, shape).shape == shape


def test_alpha_missing_means_alpha_is_the_rank():
    patch = patch_of({"up": (8, 3), "down": (3, 12)})
    without = delta(replace(patch, given_alpha=None), LINEAR)
    assert torch.allclose(without, delta(replace(patch, given_alpha=3.0), LINEAR))
    assert torch.allclose(without, 1.5 * delta(patch, LINEAR))


def test_rank():
    found = {name: algorithms()[name].rank(patch_of(stored)) for name, _, stored in EXAMPLES}
    assert found == {
        "lora": 3, "lora_bias": 3, "dora": None, "loha": 3, "lokr": 2, "oft": None, "boft": None, "ia3": None,
        "glora": 3, "full": None, "norm": None,
    }  # fmt: skip

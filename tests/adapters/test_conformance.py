"""What every registered algorithm must keep to."""

from dataclasses import replace
from math import prod
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lcmmerge.adapters import Dense, Dependent, Example, Factored, Patch, algorithm, algorithms
from lcmmerge.adapters.names import parse_name
from lcmmerge.errors import FormatError
from lcmmerge.tensors import DTYPES, TensorInfo

LINEAR = (8, 12)
EXAMPLES = [
    pytest.param(name, example, id=f"{name}-{'-'.join(example.tensors)}")
    for name, adapter in algorithms().items()
    for example in adapter.examples
]


def info(role: str, shape: tuple[int, ...]) -> TensorInfo:
    return TensorInfo(role, DTYPES["F32"], shape, Path("unread"), 0, 4 * prod(shape))


def patch_of(example: Example) -> Patch:
    roles = {role: info(role, shape) for role, shape in example.tensors.items()}
    return Patch("module", "weight", roles, 2.0, config=example.config)


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


@pytest.mark.parametrize("name", algorithms())
def test_says_what_it_is_where_it_is_from_and_what_its_tensors_are_called(name):
    adapter = algorithms()[name]
    assert adapter.title
    assert adapter.source.startswith("https://")
    assert adapter.examples
    for grammar, endings in adapter.names.items():
        for ending, role in endings.items():
            found = parse_name(f"a.module.{ending}")
            assert (found.key, found.role) == ("a.module", role)
            if grammar == "peft":
                root, dot, kind = ending.partition(".")
                named = parse_name(f"base_model.model.a.module.{root}.default{dot}{kind}")
                assert named == replace(found, grammar="peft")


@pytest.mark.parametrize(("name", "example"), EXAMPLES)
def test_exactly_one_algorithm_claims(name, example):
    roles = frozenset(example.tensors)
    assert [other for other, adapter in algorithms().items() if adapter.claims(roles)] == [name]


@pytest.mark.parametrize("roles", [{"up"}, {"up", "down", "diff"}, {"mid"}, {"rescale"}, {"lokr_w1"}, {"dora_scale"}])
def test_roles_of_no_algorithm_are_an_error_that_names_them(roles):
    with pytest.raises(FormatError) as caught:
        algorithm(patch_of(Example(LINEAR, dict.fromkeys(roles, (1, 1)))))
    assert all(role in caught.value.message for role in roles)


@pytest.mark.parametrize(("name", "example"), EXAMPLES)
def test_update_is_deterministic_float32_of_the_parameters_shape(name, example):
    patch = patch_of(example)
    assert algorithms()[name].fit(patch, example.parameter) == ""
    found = delta(patch, example.parameter)
    assert found.shape == example.parameter
    assert found.dtype == torch.float32
    assert found.norm() > 0
    assert torch.equal(found, delta(patch, example.parameter))


@pytest.mark.parametrize(("name", "example"), EXAMPLES)
def test_update_leaves_the_tensors_and_the_weight_alone(name, example):
    tensors = {role: torch.rand(size) for role, size in example.tensors.items()}
    weight = torch.rand(example.parameter)
    before = {role: tensor.clone() for role, tensor in tensors.items()} | {"": weight.clone()}
    update = algorithms()[name].update(patch_of(example), tensors, example.parameter)
    if isinstance(update, Dependent):
        update.delta_of(weight)
    assert all(torch.equal(tensor, before[role]) for role, tensor in (tensors | {"": weight}).items())


@pytest.mark.parametrize(("name", "example"), EXAMPLES)
def test_a_tensor_of_another_size_does_not_fit(name, example):
    for role, size in example.tensors.items():
        if (name, role) == ("lora_bias", "down"):  # it only tells the rank
            continue
        for axis in range(len(size)):
            changed = (*size[:axis], size[axis] * 5, *size[axis + 1 :])
            patch = patch_of(replace(example, tensors={**example.tensors, role: changed}))
            assert algorithms()[name].fit(patch, example.parameter), (role, axis)


@given(st.data())
def test_what_fits_can_be_applied(data):
    """Any shapes: either ``fit`` says what is wrong, or ``update`` works."""
    name = data.draw(st.sampled_from(list(algorithms())))
    example = data.draw(st.sampled_from(algorithms()[name].examples))
    target = data.draw(st.sampled_from(["parameter", *example.tensors]))
    anything = st.lists(st.sampled_from([0, 1, 2, 3, 4, 6, 8, 12]), max_size=5)
    reordered = st.permutations(example.parameter if target == "parameter" else example.tensors[target])
    drawn = tuple(data.draw(anything | reordered))
    if target == "parameter":
        example = replace(example, parameter=drawn)
    else:
        example = replace(example, tensors={**example.tensors, target: drawn})
    patch = patch_of(example)
    problem = algorithms()[name].fit(patch, example.parameter)
    assert "\n" not in problem
    if not problem:
        assert delta(patch, example.parameter).shape == example.parameter


def test_alpha_missing_means_alpha_is_the_rank():
    patch = patch_of(Example(LINEAR, {"up": (8, 3), "down": (3, 12)}))
    without = delta(replace(patch, given_alpha=None), LINEAR)
    assert torch.allclose(without, delta(replace(patch, given_alpha=3.0), LINEAR))
    assert torch.allclose(without, 1.5 * delta(patch, LINEAR))


@pytest.mark.parametrize(("name", "rank"), [
    ("lora", 3), ("lora_bias", 3), ("dora", 3), ("loha", 3), ("lokr", None), ("oft", None), ("boft", None),
    ("ia3", None), ("glora", 3), ("full", None), ("norm", None),
])  # fmt: skip
def test_rank(name, rank):
    """Of a LoKr with both halves whole there is none."""
    adapter = algorithms()[name]
    assert adapter.rank(patch_of(adapter.examples[0])) == rank

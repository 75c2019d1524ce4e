from __future__ import annotations

from math import prod

import pytest
from hypothesis import given
from hypothesis import strategies as st
from published import PUBLISHED, shapes

from lcmmerge.archs import Slot, architectures
from lcmmerge.archs.tables import Row, expand
from lcmmerge.archs.unet import UNet
from lcmmerge.archs.views import part, tiles

ARCHITECTURES = tuple(architectures())


def test_the_registered_name_is_the_file_name() -> None:
    assert set(PUBLISHED) <= set(ARCHITECTURES)
    assert all(arch.name == name for name, arch in architectures().items())


def test_expand_fills_the_holes() -> None:
    table = (Row("a.{i}.b.{p}", "x.{i}.y_{p}", part(1, 2, 2)), Row("c"))
    assert list(expand(table, "left.", "right.", 2)) == [
        Slot("left.a.0.b.weight", "right.x.0.y_weight", part(1, 2, 2)),
        Slot("left.a.0.b.bias", "right.x.0.y_bias", part(1, 2, 2)),
        Slot("left.a.1.b.weight", "right.x.1.y_weight", part(1, 2, 2)),
        Slot("left.a.1.b.bias", "right.x.1.y_bias", part(1, 2, 2)),
        Slot("left.c", "right.c"),
    ]


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("layout", ["single-file", "diffusers"])
def test_each_parameter_is_one_view_of_one_stored_tensor(name: str, layout: str) -> None:
    keymap = architectures()[name].keymap(layout)
    assert all(parameter == slot.parameter for parameter, slot in keymap.slots.items())
    assert all(slot in keymap.read(slot.stored) for slot in keymap.slots.values())
    for slots in keymap.stored.values():
        assert tiles([slot.view for slot in slots], [slot.view.shape((12, 4)) for slot in slots])
    assert keymap.read("no.such.tensor") == ()


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_map_holds_the_real_models_parameters_and_no_others(name: str) -> None:
    """Oracle: diffusers' and transformers' own models. Only shortcuts may be in the map and not in the model."""
    real, mapped = shapes(name).keys(), architectures()[name].keymap("single-file").slots.keys()
    assert real <= mapped
    assert not (mapped - real) & architectures()[name].required


def test_segmind_vega_is_as_large_as_published() -> None:
    """Oracles: millions by kind of block of https://blog.segmind.com/segmind-vega-2, and its file's size on the Hub."""
    sizes = {parameter: prod(shape) for parameter, shape in shapes("segmind_vega").items()}
    for kind, millions in {"down_blocks": 247, "mid_block": 31, "up_blocks": 460}.items():
        found = sum(size for parameter, size in sizes.items() if parameter.startswith(f"unet.{kind}."))
        assert round(found / 1e6) == millions
    assert 0 < 3_293_395_670 - 2 * sum(sizes.values()) < 150 * len(sizes)  # float16, behind a header


depths = st.lists(st.tuples(*[st.integers(0, 3)] * 2), min_size=1, max_size=4).map(tuple)


@given(down=depths, up=depths, mid=st.integers(0, 3), added=st.booleans())
def test_names_of_any_block_structure_are_a_bijection(down, up, mid, added) -> None:  # type: ignore[no-untyped-def]
    slots = list(UNet(down=down, mid=mid, up=up, linear_projection=True, added=added).slots())
    assert len({slot.parameter for slot in slots}) == len({slot.stored for slot in slots}) == len(slots)
    transformers = sum(map(sum, down + up)) + mid
    assert sum(slot.parameter.endswith(".attn1.to_q.weight") for slot in slots) == transformers

"""Views, both ways: what is taken out of a stored tensor, put back, is that tensor."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lcmmerge.archs.views import CONV1X1, SWAPPED, TRANSPOSED, WHOLE, Tile, View, part, tiles

MOD = View(canonical=(6, -1), stored=(-1,))  # Krea 2's mod.lin
THIRDS = [part(i, i + 1, 3) for i in range(3)]
LINEAR1 = [part(0, 1, 7), part(1, 2, 7), part(2, 3, 7), part(3, 7, 7)]  # FLUX's: q, k, v, and an MLP of four widths
GQA = [part(0, 3, 5), part(3, 4, 5), part(4, 5, 5)]  # Lumina 2's qkv
HEADS = [View(i, i + 1, 3, head=2) for i in range(3)]  # MiniMax-H3's official shards
FUSED = {"thirds": THIRDS, "linear1": LINEAR1, "gqa": GQA, "heads": HEADS, "swapped": [SWAPPED], "whole": [WHOLE]}


@pytest.mark.parametrize(
    ("view", "stored", "canonical"),
    [
        (WHOLE, (8, 4, 3, 3), (8, 4, 3, 3)),
        (THIRDS[2], (24, 8), (8, 8)),
        (THIRDS[2], (24,), (8,)),
        (LINEAR1[3], (14, 4), (8, 4)),
        (TRANSPOSED, (24, 20), (20, 24)),
        (CONV1X1, (16, 12, 1, 1), (16, 12)),
        (MOD, (18,), (6, 3)),
        (HEADS[1], (12, 4), (4, 4)),
        (SWAPPED, (6, 4), (6, 4)),
    ],
)
def test_shapes_both_ways(view: View, stored: tuple[int, ...], canonical: tuple[int, ...]) -> None:
    assert view.shape(stored) == canonical
    assert view.stored_shape(canonical) == stored
    assert view.splits(stored) and view.fitting(stored) == view
    tensor = torch.arange(torch.Size(stored).numel()).reshape(stored)
    taken = view.take(tensor)
    assert taken.shape == canonical
    back = torch.full(stored, -1)
    view.put(back, taken)
    assert torch.equal(view.take(back), taken)
    assert int((back >= 0).sum()) == taken.numel()


def test_what_lies_where() -> None:
    rows = torch.arange(12)[:, None]
    assert HEADS[1].take(rows).flatten().tolist() == [2, 3, 8, 9]
    assert SWAPPED.take(rows).flatten().tolist() == [6, 7, 8, 9, 10, 11, 0, 1, 2, 3, 4, 5]
    assert THIRDS[1].take(rows).flatten().tolist() == [4, 5, 6, 7]
    assert MOD.take(torch.arange(12)).tolist() == torch.arange(12).reshape(6, 2).tolist()


@given(name=st.sampled_from(sorted(FUSED)), width=st.integers(1, 4), columns=st.integers(1, 3))
def test_parts_make_up_the_whole(name: str, width: int, columns: int) -> None:
    views = FUSED[name]
    rows = width * views[0].of * (views[0].head or 1) * (2 if views[0].swapped else 1)
    stored = torch.randn(rows, columns)
    taken = [view.take(stored) for view in views]
    back = torch.empty_like(stored)
    for view, tensor in zip(views, taken, strict=True):
        view.put(back, tensor)
    assert torch.equal(back, stored)
    found = tiles(views, [tuple(tensor.shape) for tensor in taken])
    assert found and found[0] == tuple(stored.shape)
    assert torch.equal(torch.cat([taken[number][begin:end] for number, begin, end in found[1]]), stored)


@pytest.mark.parametrize(
    ("views", "shapes"),
    [
        (THIRDS[:2], [(4, 2), (4, 2)]),  # a hole at the end
        ([THIRDS[0], THIRDS[2]], [(4, 2), (4, 2)]),  # one in the middle
        ([THIRDS[0], THIRDS[0], THIRDS[1]], [(4, 2)] * 3),  # one twice
        (THIRDS, [(4, 2), (4, 2), (5, 2)]),  # of different tensors
        (LINEAR1, [(4, 2), (4, 2), (4, 2), (12, 2)]),  # another MLP
    ],
)
def test_parts_that_make_up_nothing(views: list[View], shapes: list[tuple[int, ...]]) -> None:
    assert tiles(views, shapes) is None


def test_the_order_of_the_rows() -> None:
    assert tiles([SWAPPED], [(4, 2)]) == ((4, 2), [Tile(0, 2, 4), Tile(0, 0, 2)])
    assert tiles(HEADS, [(4,)] * 3) == ((12,), [Tile(i % 3, i // 3 * 2, i // 3 * 2 + 2) for i in range(6)])


@pytest.mark.parametrize(
    ("view", "stored"), [(THIRDS[0], (8, 2)), (SWAPPED, (7,)), (HEADS[0], (9, 2)), (THIRDS[0], ())]
)
def test_what_cannot_be_cut(view: View, stored: tuple[int, ...]) -> None:
    assert not view.splits(stored)


def test_a_file_that_has_the_canonical_shape() -> None:
    assert CONV1X1.fitting((16, 16)) == WHOLE
    assert MOD.fitting((6, 16)) == WHOLE

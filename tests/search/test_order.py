"""No order of a grid rewrites less than ours."""

from itertools import permutations, product

from hypothesis import given
from hypothesis import strategies as st

from lcmmerge.search.order import Cell, ordered, rewritten

SIZES = [(1,), (4,), (6,), (2, 2), (2, 3), (3, 2), (1, 3), (1, 2, 2), (2, 1, 3), (3, 2, 1)]


@given(st.data())
def test_against_every_order_of_a_small_grid(data):
    sizes = data.draw(st.sampled_from(SIZES))
    groups = [frozenset(term for term in range(len(sizes)) if mask >> term & 1) for mask in range(1, 1 << len(sizes))]
    reached = {group: data.draw(st.integers(0, 9)) for group in groups}
    now = data.draw(st.none() | st.tuples(*(st.integers(-1, size) for size in sizes)).map(Cell))
    cells = [*map(Cell, product(*map(range, sizes)))]
    found = ordered(cells, reached, now)
    assert sorted(found) == cells
    assert rewritten(found, reached, now) == min(rewritten(order, reached, now) for order in permutations(cells))


def test_what_the_rewriting_costs():
    reached = {frozenset({0}): 100, frozenset({1}): 10, frozenset({0, 1}): 1}
    assert rewritten(map(Cell, [(0, 1), (1, 1), (1, 1), (2, 2)]), reached, Cell((0, 0))) == 11 + 101 + 0 + 111
    assert rewritten([Cell((0, 0))], reached, None) == 111


def test_any_cells_come_once_each():
    cells = [*map(Cell, [(0.5, 1.0), (1.0, 0.2), (0.5, 1.0), (0.7, 0.1)])]
    assert sorted(ordered(cells, {frozenset({0}): 1}, None)) == sorted(set(cells))
    assert ordered([], {}, None) == []

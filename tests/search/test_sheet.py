"""Where cells stand, what is seen of them, and contact sheets that are never shrunk."""

from io import BytesIO

import pytest
from PIL import Image

from lcmmerge.search.order import Arrangement, Cell, label
from lcmmerge.search.pictures import FEWEST, MOST, PIXELS, Shown
from lcmmerge.search.sheet import MOST as LONGEST
from lcmmerge.search.sheet import SheetTile, pages, sheets


def tile(name, side=8, best=False):
    return SheetTile(str(name), (Image.new("RGB", (side, side), "blue"),) * 2, best)


def test_a_grid_has_a_column_for_each_lambda_of_the_accelerator():
    cells = [(style, lcm) for style in (0.5, 1.0) for lcm in (0.0, 0.4, 0.8)]
    found = Arrangement.of(map(Cell, reversed(cells[:-1])), accelerator=1)
    assert found.columns == (0.0, 0.4, 0.8)
    assert found.rows == ((0.5,), (1.0,))
    assert found.places == (tuple(map(Cell, cells[:3])), (*map(Cell, cells[3:5]), None))


def test_further_terms_share_the_rows():
    cells = [(style, lcm, other) for style in (0.5, 1.0) for lcm in (0.0, 0.4) for other in (0.0, 2.0)]
    found = Arrangement.of(map(Cell, cells), accelerator=1)
    assert found.rows == ((0.5, 0.0), (0.5, 2.0), (1.0, 0.0), (1.0, 2.0))
    assert all(tuple(place.lambdas[1] for place in row) == found.columns for row in found.places)
    assert sorted(place.lambdas for row in found.places for place in row) == sorted(cells)


def test_scattered_cells_stand_in_order():
    cells = [(0.1 * number, 1 - 0.07 * number) for number in range(9)]
    found = Arrangement.of(map(Cell, reversed(cells)), accelerator=1)
    assert (found.columns, found.rows) == ((), ())
    assert [place.lambdas for row in found.places for place in row] == cells


def test_a_label_is_short():
    assert label(("style", "lcm"), (1.0, 1 / 3)) == "style 1, lcm 0.333"


@pytest.mark.parametrize("jobs", [2, 5, 40])
@pytest.mark.parametrize("drawings", [4, 30, 1000])
@pytest.mark.parametrize("size", [(64, 64), (512, 768), (1024, 1024)])
def test_images_are_as_many_and_as_large_as_the_file_can_hold(jobs, drawings, size):
    numbers = range(100, 100 + jobs)
    choice = Shown.of(numbers, drawings, size)
    width, height = choice.size
    pixels = len(choice.jobs) * drawings * width * height
    assert pixels <= PIXELS * 1.01  # sides are rounded
    assert (choice.jobs[0], choice.jobs[-1]) == (numbers[0], numbers[-1])
    assert min(FEWEST, jobs) <= len(set(choice.jobs)) == len(choice.jobs) <= MOST
    assert width / height == pytest.approx(size[0] / size[1], rel=0.02)
    shrunk = choice.size != size
    assert not shrunk or len(choice.jobs) == FEWEST
    fits_more = (len(choice.jobs) + 1) * drawings * size[0] * size[1] <= PIXELS
    assert not fits_more or len(choice.jobs) in (jobs, MOST)


@pytest.mark.parametrize(("columns", "rows"), [(9, 9), (3, 4), (1, 1), (2, 100)])
def test_every_tile_is_on_one_page_and_the_others_are_on_each(columns, rows):
    beside = [tile("teacher"), tile("solver")]
    cells = [[tile((row, column)) for column in range(7)] for row in range(5)]
    cells[2][3] = None
    found = list(pages(beside, cells, columns, rows))
    shown = [one.caption for page in found for row in page for one in row if one]
    expected = {one.caption for row in cells for one in row if one}
    assert {name: shown.count(name) for name in expected} == dict.fromkeys(expected, 1)
    assert shown.count("teacher") == shown.count("solver") == len(found)
    assert all(len(row) <= columns for page in found for row in page)
    least = 1 + -(-len(beside) // columns)  # a row of cells, below those that stand on each page
    assert all(len(page) <= max(rows, least) for page in found)


def test_a_large_study_has_several_sheets_of_the_same_scale():
    (small,) = sheets([tile("teacher", 256)], [[tile(column, 256) for column in range(3)]])
    many = sheets([tile("teacher", 256)], [[tile((row, column), 256) for column in range(17)] for row in range(2)])
    assert len(many) == 2
    width = (Image.open(BytesIO(small)).width - 8) // 3
    for page in map(Image.open, map(BytesIO, many)):
        assert max(page.size) <= LONGEST
        assert (page.width - 8) % width == 0

"""Successive halving: weak cells stop early, whoever draws them and however often the study is cut."""

import json
import random
import signal
import time

import pytest
import torch
from forked import Child
from planting import ASK, BEST, GRID, PROMPTS, Planted, drawn_twice, image, planted, run, whole
from searching import requested

from lcmmerge.errors import LcmMergeError
from lcmmerge.search.order import Cell
from lcmmerge.search.request import prepare
from lcmmerge.search.study import CELL

CONTROL = (1.0, 0.0)


def cells(scored):
    """λs → how many images a cell has."""
    return {row.cell.lambdas: row.images for row in scored.rows if row.kind == CELL and not row.control}


@pytest.fixture(scope="module")
def halved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("halved")
    way = Planted(folder / "log")
    return run(folder / "work", [CONTROL, *GRID], way), way


def test_rungs_grow_and_hold_one_another():
    assert [len(rung) for rung in ASK.rungs] == [4, 12, 36]
    assert all(set(before) < set(after) for before, after in zip(ASK.rungs, ASK.rungs[1:], strict=False))
    assert {ASK.jobs[number].prompt for number in ASK.rungs[1]} == set(PROMPTS)  # before further seeds
    assert whole(ASK).rungs == (tuple(range(36)),)
    assert ASK.images(9, 2) == 2 * 36 + 9 * 4 + 3 * 8 + 1 * 24


def test_a_third_goes_on_at_each_rung_and_the_best_is_found(halved):
    scored, way = halved
    assert scored.best.cell.lambdas == BEST
    assert sorted(cells(scored).values()) == [4] * 6 + [12] * 2 + [36]
    assert cells(scored)[BEST] == 36
    drawn = sum(len(drawing.jobs) for drawing in way.drawn if drawing.preset == ASK.preset)
    assert drawn == ASK.images(len(GRID), 1)
    assert not drawn_twice(way.log)


def test_what_a_cell_is_compared_with_is_always_whole(halved):
    scored, _ = halved
    assert {row.images for row in scored.rows if row.kind != CELL or row.control} == {36}


def test_stopped_cells_are_shown_and_compared_with_nothing(halved):
    stopped = [row for row in halved[0].rows if row.stopped]
    assert len(stopped) == 8
    for row in stopped:
        assert row.score.low <= row.score.value <= row.score.high
        assert not (row.ties or row.front or row.fault)
        assert row.as_dict()["stopped"]
        assert row.score.value > halved[0].best.score.value


def test_a_cell_in_parts_is_the_cell_at_once(tmp_path):
    """A best cell drawn in three parts scores as one that is drawn whole."""
    parts, at_once = (run(tmp_path / name, [BEST], Planted(tmp_path / f"{name}.log"), ask)
                      for name, ask in (("parts", ASK), ("whole", whole(ASK))))  # fmt: skip
    assert parts.best == at_once.best
    drawing = ASK.drawing(Cell(BEST))
    expected = torch.stack([image(drawing, job) for job in ASK.jobs])
    assert expected.shape[0] == parts.best.images


def test_who_goes_on_depends_on_no_order(halved, tmp_path):
    order = [*GRID]
    random.Random(1).shuffle(order)
    assert cells(run(tmp_path / "work", [*order, CONTROL], Planted(tmp_path / "log"))) == cells(halved[0])


@pytest.mark.parametrize("stop", [pytest.param(3, marks=pytest.mark.e2e), 9, pytest.param(16, marks=pytest.mark.e2e)])
def test_an_interrupted_study_goes_on_and_draws_nothing_twice(stop, halved, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "work", [CONTROL, *GRID], Planted(tmp_path / "log", stop=stop))
    found = run(tmp_path / "work", [CONTROL, *GRID], Planted(tmp_path / "log"))
    assert {row.cell.lambdas: row for row in found.rows} == {row.cell.lambdas: row for row in halved[0].rows}
    assert not drawn_twice(tmp_path / "log")


def test_cells_that_come_later_compete_with_those_before(tmp_path):
    weak = [cell for cell in GRID if cell != BEST]
    first = cells(run(tmp_path / "work", weak, Planted(tmp_path / "log")))
    found = run(tmp_path / "work", GRID, Planted(tmp_path / "log"))
    assert found.best.cell.lambdas == BEST
    assert all(cells(found)[cell] >= images for cell, images in first.items())
    assert not drawn_twice(tmp_path / "log")


def test_optuna_chooses_at_the_first_rung(tmp_path):
    found = cells(run(tmp_path / "work", GRID[:1], Planted(tmp_path / "log"), sampled=8))
    assert sorted(found.values()) == [4] * 6 + [12] * 2 + [36]


@pytest.mark.e2e
def test_two_processes_draw_no_cell_twice(halved, tmp_path):
    pair = [Child(planted, tmp_path / "work", tmp_path / "log") for _ in range(2)]
    for one in pair:
        out = one.communicate(timeout=300)[0]
        assert json.loads(out)["best"] == list(BEST)
    drawn = [json.loads(line) for line in drawn_twice(tmp_path / "log")]
    assert all(kind != CELL for kind, *_ in drawn), drawn  # what cells are compared with both may draw


@pytest.mark.e2e
def test_two_processes_share_the_rungs_and_one_is_killed(halved, tmp_path):
    """When all that cells are compared with, 144 images, and some cells are drawn."""
    one, other = (Child(planted, tmp_path / "work", tmp_path / "log") for _ in range(2))
    deadline = time.monotonic() + 300
    while not (tmp_path / "log").exists() or len((tmp_path / "log").read_text().splitlines()) < 160:
        assert time.monotonic() < deadline
        assert one.poll() is None
        time.sleep(0.01)
    one.send_signal(signal.SIGKILL)
    one.communicate()
    out = other.communicate(timeout=300)[0]
    rows = json.loads(out)["rows"]
    found = {tuple(row["lambda"]): row["images"] for row in rows if row["kind"] == CELL and not row["control"]}
    assert found == cells(halved[0])
    again = Planted(tmp_path / "log")
    run(tmp_path / "work", GRID, again)
    assert not again.drawn


@pytest.mark.e2e
def test_from_the_command_line(files, cli, tmp_path):
    """Two prompts and four seeds are eight images: two rungs at ETA 2."""
    inputs = files("sd1")
    (tmp_path / "prompts.txt").write_text("a fox\na hat\n")
    asked = ("search", inputs.folder("fp32"), inputs.style, "--lcm", inputs.lcm, "--accelerator", "lcm")
    asked += ("--prompts", tmp_path / "prompts.txt", "--size", "64x64", "--steps", 1, "--guidance", 1, "--count", 4)
    asked += ("--grid", "lcm=0.5,0.8,1.0,1.2", "--halving", 2, "-o", tmp_path / "study")
    done = cli(*asked)
    assert done.code == 0, done.err
    assert done.out.count("stopped") == 2
    report = json.loads((tmp_path / "study" / "study.json").read_text())
    assert sorted(row["images"] for row in report["rows"] if row["kind"] == CELL) == [4, 4, 8, 8, 8]
    assert cli(*asked[:-4], "--halving", "-o", tmp_path / "other").code == 2  # ETA 3 wants twelve
    assert "another halving" in cli(*asked[:-4], "-o", tmp_path / "study").err


@pytest.mark.parametrize(("fields", "said"), [
    ({"halving": 3}, "too few to halve"),
    ({"halving": 2, "front": True, "optimize": 4, "count": 9}, "a front has two"),
    ({"front": True}, "for Optuna to seek"),
])  # fmt: skip
def test_faults(fields, said, files, tmp_path):
    with pytest.raises(LcmMergeError, match=said) as caught:
        prepare(requested(files("sd1"), tmp_path, **fields), pytest.fail)
    assert caught.value.hint

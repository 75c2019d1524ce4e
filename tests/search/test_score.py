"""From samples to a choice, on samples whose merits are known."""

import math

import pytest
import torch

from lcmmerge.draw.jobs import jobs_of
from lcmmerge.draw.presets import Preset
from lcmmerge.errors import LcmMergeError
from lcmmerge.search.drawing import Drawing, Sampled
from lcmmerge.search.objectives import objectives
from lcmmerge.search.order import Cell
from lcmmerge.search.score import score
from lcmmerge.search.study import BASELINE, CELL, FLOOR, TEACHER, Ask

JOBS = tuple(jobs_of(["a", "b", "c", "d"], (64, 64), count=4))
PRESET = Preset("lcm", "LCMScheduler", 4, 1.0)
ASK = Ask(JOBS, PRESET, 4, 2, 1, 7.5)
PUBLISHED = (0.8, 1.0)


def noise(seed):
    return torch.randn((16, 4, 8, 8), generator=torch.Generator().manual_seed(seed))


def drawn(kind, strengths, distance, seed=1):
    """Samples that are the teacher's but for noise, and a palette, that grow with ``distance``; None: a cell failed."""
    drawing = Drawing(kind, Cell(strengths), PRESET, JOBS)
    if distance is None:
        return Sampled(drawing, None, "NaN")
    return Sampled(drawing, noise(0) * (1 + 0.3 * distance) + distance * (0.5 * noise(seed) + 0.3))


def scored(cells, baseline=3.0, control=2.0, **more):
    """``cells``: λ → distance from the teacher; beside them what every study holds."""
    found = [
        drawn(TEACHER, (1.0, 0.0), 0), Sampled(Drawing(FLOOR, Cell((1.0, 0.0)), PRESET, JOBS), noise(9)),
        drawn(BASELINE, (1.0, 0.0), baseline), drawn(CELL, (1.0, 0.0), control),
        *(drawn(CELL, strengths, distance) for strengths, distance in cells.items()),
    ]  # fmt: skip
    known = objectives()
    return score(found, [4] * len(found), known["teacher"], known["style"], ASK, Cell(more.get("published", PUBLISHED)))


def test_the_nearest_cell_is_best_and_beats_what_it_must():
    found = scored({(0.5, 1.0): 1.5, (0.8, 1.0): 0.2, (1.1, 1.0): 1.0})
    assert found.best.cell.lambdas == (0.8, 1.0)
    assert [row.cell.lambdas for row in found.ties] == [(0.8, 1.0)]
    assert found.verdict == (
        "the best cell beats DPM-Solver++ at as many evaluations",
        "the best cell beats the few-step scheduler with no accelerator (λ = 0)",
    )
    scores = {row.cell.lambdas: row.score.value for row in found.rows if row.kind == CELL}
    assert scores[0.8, 1.0] < scores[1.1, 1.0] < scores[0.5, 1.0] < scores[1.0, 0.0]
    assert all(row.score.low <= row.score.value <= row.score.high for row in found.rows if row.kind == CELL)


@pytest.mark.parametrize(("baseline", "control", "first", "second"), [
    (0.1, 2.0, "NO CELL IS SHOWN TO BEAT DPM-Solver++", "the best cell beats"),
    (2.0, 0.1, "the best cell beats", "NO CELL IS SHOWN TO BEAT the few-step scheduler"),
    (0.3, 0.3, "NO CELL", "NO CELL"),
])  # fmt: skip
def test_what_is_not_beaten_is_said(baseline, control, first, second):
    verdict = scored({(0.8, 1.0): 0.3, (0.9, 1.0): 0.8}, baseline, control).verdict
    assert verdict[0].startswith(first)
    assert verdict[1].startswith(second)


def test_what_is_beyond_the_floor_is_said():
    assert scored({(0.8, 1.0): 2.0}, 5.0, 4.0).verdict[2] == (
        "by energy distance and spectrum the best cell is farther from the teacher than two draws of the teacher are"
    )


def test_of_a_tie_the_nearest_to_the_published_is_taken():
    cells = {(0.4, 0.6): 0.5, (0.7, 1.0): 0.5, (1.2, 1.2): 0.5, (0.8, 0.9): 1.5}
    found = scored(cells)
    assert {row.cell.lambdas for row in found.ties} == {(0.4, 0.6), (0.7, 1.0), (1.2, 1.2)}
    assert found.best.cell.lambdas == (0.7, 1.0)
    assert scored(cells, published=(0.5, 0.5)).best.cell.lambdas == (0.4, 0.6)


def test_scores_do_not_depend_on_the_control():
    cells = {(0.5, 1.0): 1.5, (0.8, 1.0): 0.2}
    one, other = scored(cells), scored(cells, control=100.0)
    assert [row.score for row in one.rows[4:]] == [row.score for row in other.rows[4:]]


def test_the_front_holds_what_nothing_beats_in_both():
    found = scored({(0.5, 1.0): 1.5, (0.8, 1.0): 0.2, (1.1, 1.0): 1.0})
    assert {row.cell.lambdas for row in found.front} >= {(0.8, 1.0)}
    for row in found.front:
        rivals = [other for other in found.rows if other.kind == CELL and not other.control and other is not row]
        assert not any(o.score.value < row.score.value and o.style.value < row.style.value for o in rivals)
    assert all(row.front or any(o.score.value <= row.score.value and o.style.value <= row.style.value
               for o in found.front) for row in found.rows if row.kind == CELL and not row.control)  # fmt: skip


def test_the_floor_has_no_paired_figures_and_no_score():
    floor = next(row for row in scored({(0.8, 1.0): 0.2}).rows if row.kind == FLOOR)
    assert floor.figures.keys() == {"energy distance", "spectrum"}
    assert floor.score is None


def test_a_failed_cell_is_shown_and_changes_nothing():
    with_it, without = scored({(0.5, 1.0): 0.2, (9.0, 1.0): None}), scored({(0.5, 1.0): 0.2})
    (row,) = (row for row in with_it.rows if row.fault)
    assert (row.cell.lambdas, row.score, row.figures) == ((9.0, 1.0), None, {})
    assert with_it.best.score == without.best.score


def test_one_cell_alone_is_scored():
    found = scored({(0.8, 1.0): 0.2})
    assert math.isfinite(found.best.score.value)
    assert found.best.ties


def test_nothing_to_choose_from_is_an_error():
    with pytest.raises(LcmMergeError, match="no cell gave an image"):
        scored({(0.8, 1.0): None})

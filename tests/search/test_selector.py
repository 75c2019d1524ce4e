"""The selector against ground truth, on the embedded model: does it order cells rightly, and is its choice good?

The truth (truth.json, by tests/bench/truth.py) is how near a cell's pictures come to the style model's many-step ones,
in the features of a judge that a search never sees, with many pictures of other noise.
"""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from embedded.claim import GUIDANCE
from embedded.folder import SHIPPED, Folder
from embedded.scenes import caption
from merging import merge_of
from scipy.interpolate import RegularGridInterpolator
from scipy.stats import spearmanr

from lcmmerge.search.request import SearchRequest
from lcmmerge.search.run import search
from lcmmerge.search.study import CELL

pytestmark = pytest.mark.e2e

TRUTH = json.loads(Path(__file__).with_name("truth.json").read_text())
GRID = {tuple(cell["lambda"]): cell for cell in TRUTH["cells"]}
STYLES, LCMS = (tuple(sorted(set(axis))) for axis in zip(*GRID, strict=True))
DISTANCES = {cell: found["distance"] for cell, found in GRID.items()}
BEST, WORST = (choose(DISTANCES, key=DISTANCES.__getitem__) for choose in (min, max))
TIES = {cell for cell, found in GRID.items() if found["behind"][0] <= 0}
PROMPTS = tuple(map(caption, range(10)))
OPTIMIZED = 8


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    folder = Folder(SHIPPED)
    merge = merge_of(
        str(folder.base), style=str(folder.lora(TRUTH["style"])), lcm=str(folder.lora("lcm")), accelerator="lcm"
    )
    work, axes = tmp_path_factory.mktemp("selector") / "grid", {"style": STYLES, "lcm": LCMS}
    return SearchRequest(merge, work, PROMPTS, axes, steps=4, count=1, guidance=GUIDANCE, batch=40)


@pytest.fixture(scope="module")
def found(asked):
    return search(asked)


def regret(strengths):
    """How much farther than the best cell, as a share of what the worst is; between cells linearly."""
    truth = RegularGridInterpolator((STYLES, LCMS), [[DISTANCES[one, two] for two in LCMS] for one in STYLES])
    return (truth(strengths).item() - DISTANCES[BEST]) / (DISTANCES[WORST] - DISTANCES[BEST])


def test_cells_are_ordered_as_the_truth_orders_them(found):
    """Measured: 0.89; with 20 images a cell 0.93, with 40 0.90 and 0.84, with 80 0.88 and 0.81 (seeds 0, 500)."""
    scores = {row.cell.lambdas: row.score.value for row in found.scored.rows if row.kind == CELL and not row.control}
    assert scores.keys() == GRID.keys()
    assert spearmanr([scores[cell] for cell in GRID], [DISTANCES[cell] for cell in GRID]).statistic >= 0.75


def test_the_best_cells_are_among_the_ties_at_a_fraction_of_the_cost(found):
    """Measured: regret 0.15, since of the ties the nearest to the published λ is taken.

    The ties narrow with more images. With 80 a cell the choice was among the true ties from both seeds tried, 0 and
    500; with 40, and with 80 by halving, from 500 alone.
    """
    ties = {row.cell.lambdas for row in found.scored.ties}
    assert ties >= TIES
    assert len(ties) <= len(GRID) / 2
    assert found.scored.best.cell.lambdas in ties
    assert regret(found.scored.best.cell.lambdas) <= 0.2
    rows = found.scored.rows
    evaluations = sum(row.evaluations for row in rows) * len(PROMPTS)
    assert len(rows) * len(PROMPTS) <= 0.1 * TRUTH["pictures"] * (len(GRID) + 1)
    assert evaluations <= 0.12 * TRUTH["pictures"] * (len(GRID) * 4 + 50)


def test_optuna_finds_what_the_grid_finds_with_fewer_cells(asked, found, tmp_path):
    """Measured: regret 0.10, with 20 images a cell 0.22; a cell at random has 0.39.

    What cells are compared with is drawn already.
    """
    shutil.copytree(asked.work / "latents", tmp_path / "latents")
    corners = {"style": (STYLES[0], STYLES[-1]), "lcm": (LCMS[0], LCMS[-1])}
    result = search(replace(asked, work=tmp_path, axes=corners, optimize=OPTIMIZED))
    assert sum(row.kind == CELL for row in result.scored.rows) < len(GRID)
    assert regret(result.scored.best.cell.lambdas) <= 0.3

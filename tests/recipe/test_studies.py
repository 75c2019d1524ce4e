"""The ``search`` section: the λs of ``fuse`` among others, and a bound on how much worse they are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from fusing import Files
from recipefile import due, recipe, run

from lcmmerge.errors import QualityError, RecipeError

SEARCH = """\
search:
  prompts: [the thing, in]
  count: 2
  steps: 2
  grid: {style: [0.4], lcm: [1.0]}
  batch: 4
"""


@pytest.fixture
def sd1(files: Callable[[str], Files]) -> Files:
    return files("sd1")


def test_a_study_stands_beside_the_output(sd1: Files, tmp_path: Path) -> None:
    path, out = recipe(tmp_path, sd1, base=sd1.folder(), more=SEARCH), tmp_path / "out"
    record = run(path, out).steps["search pico"]
    assert list(record.outputs) == [f"search/pico/{name}" for name in ("sheet.png", "study.json", "trials.csv")]
    assert record.figures["best"].keys() == {"style", "lcm"}
    assert {"style": 0.8, "lcm": 1.0} in [record.figures["best"], *record.figures["ties"]]  # of `fuse`, tried too
    assert record.figures["search_regret"] >= 0
    assert set(due(path, out).values()) == {None}
    assert due(path, out, "lambda.style=0.7")["search pico"] == "follows fuse pico"
    path.write_text(path.read_text() + "check: {search_regret: {max: -1}}\n")
    with pytest.raises(QualityError) as missed:
        run(path, out)
    assert "search_regret" in missed.value.details[0]


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("lcm: [1.0]", "other: [1.0]", r"search\.grid\.other: no such term"),
        (", accelerator: lcm", "", "0 of the terms are accelerators"),
        ("  steps: 2\n", "  size: 65x64\n", r"search\.size"),
    ],
)
def test_what_cannot_be_searched(sd1: Files, tmp_path: Path, before: str, after: str, message: str) -> None:
    path = recipe(tmp_path, sd1, base=sd1.folder(), more=SEARCH)
    path.write_text(path.read_text().replace(before, after))
    with pytest.raises(RecipeError, match=message):
        run(path, tmp_path / "out")

"""The ``search`` section: the λs of ``fuse`` among others, and a bound on how much worse they are."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from fusing import Files
from recipefile import due, recipe, run, tell_alpha
from searching import searches, style_of
from torch.testing import assert_close

from lcmmerge.errors import LcmMergeError, QualityError, RecipeError

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


@pytest.mark.e2e
def test_a_study_stands_beside_the_output(sd1: Files, tmp_path: Path) -> None:
    path, out = recipe(tmp_path, sd1, base=sd1.folder(), more=SEARCH), tmp_path / "out"
    record = run(path, out).steps["search pico"]
    files = ("report.html", "sheet.png", "study.json", "trials.csv")
    assert list(record.outputs) == [f"search/pico/{name}" for name in files]
    assert record.figures["best"].keys() == {"style", "lcm"}
    assert {"style": 0.8, "lcm": 1.0} in [record.figures["best"], *record.figures["ties"]]  # of `fuse`, tried too
    assert record.figures["search_regret"] >= 0
    assert set(due(path, out).values()) == {None}
    assert due(path, out, "lambda.style=0.7")["search pico"] == "follows fuse pico"
    path.write_text(path.read_text() + "check: {search_regret: {max: -1}}\n")
    with pytest.raises(QualityError) as missed:
        run(path, out)
    assert "search_regret" in missed.value.details[0]


def test_an_alpha_that_is_told(sd1: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As one in the file, 2."""
    searched = searches(monkeypatch)
    for name in ("own", "told"):
        (tmp_path / name).mkdir()
        path = recipe(tmp_path / name, sd1, base=sd1.folder(), more=SEARCH)
        with pytest.raises(LcmMergeError, match="not searched"):
            run(tell_alpha(path) if name == "told" else path, tmp_path / name / "out")
    own, told = searched
    assert told.inputs["style"] != own.inputs["style"]
    assert told.inputs["alpha"] == {"style": 2}
    assert_close(style_of(told), style_of(own), rtol=0, atol=0)


def test_what_is_not_linear_is_not_searched(sd1: Files, tmp_path: Path) -> None:
    """Before anything is made."""
    path = recipe(tmp_path, sd1, more=SEARCH)
    with pytest.raises(RecipeError, match=r"^search: .*fuse.method is ties:density=0\.2"):
        due(path, tmp_path / "out", "fuse.method=ties")


@pytest.mark.e2e
def test_blocks_halving_and_optuna(sd1: Files, tmp_path: Path) -> None:
    more = SEARCH.replace("count: 2", "count: 4").replace("steps: 2", "steps: 1")
    more = more.replace("style: [0.4], ", "") + "  halving: 2\n  optimize: 1\n  blocks: {style: {IN: [0.5]}}\n"
    path = recipe(tmp_path, sd1, base=sd1.folder(), more=more)
    figures = run(path, tmp_path / "out").steps["search pico"].figures
    assert figures["best"].keys() == {"style", "lcm", "style@IN"}
    assert 0.5 <= figures["best"]["style@IN"] <= 1
    rows = json.loads((tmp_path / "out" / "search" / "pico" / "study.json").read_text())["rows"]
    cells = [row for row in rows if row["kind"] == "cell" and not row["control"]]
    assert [0.8, 1.0, 1.0] in [row["lambda"] for row in cells]  # of `fuse`
    assert sorted(row["images"] for row in cells) == [4, 8, 8]


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("lcm: [1.0]", "other: [1.0]", r"search\.grid\.other: no such term"),
        ("batch: 4", "blocks: {other: {IN: [0.5]}}", r"search\.blocks\.other: no such term"),
        ("  steps: 2\n", "  size: 65x64\n", r"search\.size"),
    ],
)
def test_what_cannot_be_searched(sd1: Files, tmp_path: Path, before: str, after: str, message: str) -> None:
    path = recipe(tmp_path, sd1, base=sd1.folder(), more=SEARCH)
    path.write_text(path.read_text().replace(before, after))
    with pytest.raises(RecipeError, match=message):
        run(path, tmp_path / "out")

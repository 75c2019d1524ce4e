"""A study goes on, whatever happened to it: killed, shared by two processes, with a cell that cannot be drawn."""

import json
import shutil
import signal
import sqlite3
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from forked import Child
from fusing import edited
from merging import merge_of
from safetensors.torch import load_file
from searching import searched

from lcmmerge.errors import LcmMergeError, NotFoundError
from lcmmerge.merge.spec import Source
from lcmmerge.search.order import Cell
from lcmmerge.search.request import SearchRequest, prepare
from lcmmerge.search.run import search
from lcmmerge.search.store import Store
from lcmmerge.search.study import CELL, compared

GRID = {"style": (0.5, 1.0), "lcm": (0.5, 1.0)}


@pytest.fixture(scope="module")
def finished(files, tmp_path_factory):
    """A study that is done, and its result; to be left as it is."""
    asked = request(files("sd1"), tmp_path_factory.mktemp("finished"))
    return asked, search(asked)


@pytest.fixture
def asked(files, tmp_path):
    return request(files("sd1"), tmp_path)


@pytest.fixture
def begun(asked, finished):
    """What cells are compared with is drawn already."""
    shutil.copytree(finished[0].work / "latents", asked.work / "latents")
    return asked


def request(inputs, folder):
    merge = merge_of(str(inputs.folder("fp32")), style=str(inputs.style), lcm=str(inputs.lcm), accelerator="lcm")
    return SearchRequest(
        merge, folder / "work", ("a fox", "a hat"), GRID, steps=1, count=1, size=(64, 64), guidance=1, teacher_steps=2
    )


def stored(work):
    return {path: path.stat().st_mtime_ns for path in (work / "latents").glob("*.safetensors")}


def until(holds, seconds=100):
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def faults(result):
    return {row.cell.lambdas: row.fault for row in result.scored.rows if row.fault}


def test_a_study_holds_cells_controls_and_what_they_must_beat(finished):
    asked, result = finished
    rows = result.scored.rows
    cells = {row.cell.lambdas: row.control for row in rows if row.kind == CELL}
    grid = {(style, lcm): lcm == 0 for style in (0.5, 1.0) for lcm in (0.0, 0.5, 1.0)}
    assert cells == grid
    assert [(row.kind, row.evaluations) for row in rows if row.kind != CELL] == [
        ("teacher", 2), ("teacher, other seeds", 2), ("DPM-Solver++", 1),
    ]  # fmt: skip
    written = json.loads((asked.work / "study.json").read_text())
    assert written == json.loads(json.dumps(result.as_dict()))
    fused = f"lcmmerge fuse {asked.merge.base.reference} {source_of(asked, 'style')} --lambda "
    assert written["command"].startswith(fused)
    assert {found["parameter"].partition(".")[0] for found in written["diagnostics"]} == {"unet"}
    lines = (asked.work / "trials.csv").read_text().splitlines()
    assert len(lines) == 1 + len(rows)
    assert len({line.count(",") for line in lines if '"' not in line}) == 1
    assert (asked.work / "sheet.png").read_bytes().startswith(b"\x89PNG")
    before = stored(asked.work)
    again = search(asked)
    assert stored(asked.work) == before
    assert again.scored == result.scored


def test_baselines_never_evaluate_more_often_than_a_cell(asked):
    prepared = prepare(replace(asked, guidance=7.5), pytest.fail)
    for evaluations, expected in ((1, [(1, 1.0)]), (4, [(4, 1.0), (2, 7.5)]), (5, [(5, 1.0), (2, 7.5)])):
        ask = prepared.ask(evaluations)
        assert [(one.preset.steps, one.preset.guidance) for one in compared(ask)[3:]] == expected


def test_a_cell_is_the_same_whatever_is_drawn_beside_it(finished, begun):
    asked, _ = finished
    prepared = prepare(asked, pytest.fail)
    path = Store(begun.work / "latents", prepared.inputs).path(prepared.ask(1).drawing(Cell((0.5, 1.0))))
    expected = load_file(path)["latents"]
    path.unlink()
    search(replace(begun, axes={"style": (0.5,), "lcm": (1.0,)}, batch=1))
    assert torch.allclose(load_file(path)["latents"], expected, rtol=1e-4, atol=1e-4)


def test_a_planted_rescaling_is_found(finished, tmp_path):
    """An LCM-LoRA stored at twice its strength scores at half the λ what it scored, and is chosen there."""
    asked, result = finished
    tensors = load_file(source_of(asked, "lcm"))
    doubled = {name: 2 * tensor for name, tensor in tensors.items() if name.endswith("lora_up.weight")}
    lcm = edited(Path(source_of(asked, "lcm")), tmp_path / "doubled.safetensors", **doubled)
    axes = GRID | {"lcm": tuple(value / 2 for value in GRID["lcm"])}
    planted = search(replace(asked, merge=with_source(asked.merge, "lcm", lcm), axes=axes, work=tmp_path / "planted"))

    before, after = (
        {row.cell.lambdas: row.score.value for row in found.scored.rows if row.kind == CELL}
        for found in (result, planted)
    )
    assert {(style, 2 * lcm): score for (style, lcm), score in after.items()} == pytest.approx(before, abs=1e-2)
    assert least(after)[1] == least(before)[1] / 2


def least(scores):
    """Of the cells with the accelerator, one of which is chosen."""
    return min((cell for cell in scores if cell[1]), key=scores.get)


def test_a_cell_that_cannot_be_drawn_fails_and_the_others_do_not(begun):
    result = search(replace(begun, axes={"lcm": (1.0, 1e38)}))
    assert faults(result).keys() == {(1.0, 1e38)}
    assert result.scored.best.cell.lambdas == (1.0, 1.0)
    before = stored(begun.work)
    assert faults(search(replace(begun, axes={"lcm": (1.0, 1e38)}))) == faults(result)
    assert stored(begun.work) == before


@pytest.mark.e2e
def test_optuna_chooses_cells_within_the_axes_and_goes_on(begun):
    asked = replace(begun, axes={"style": (0.8,), "lcm": (0.5, 1.0)}, optimize=2)
    cells = {row.cell.lambdas for row in search(asked).scored.rows if row.kind == CELL}
    assert len(cells) == 3 + 2  # the grid with its control, and two chosen
    assert all(style == 0.8 and 0 <= lcm <= 1 for style, lcm in cells)
    more = {row.cell.lambdas for row in search(replace(asked, optimize=3)).scored.rows if row.kind == CELL}
    assert more > cells
    assert len(more) == len(cells) + 1


@pytest.mark.parametrize(("change", "said"), [
    ({"prompts": ("a fox", "a cat")}, "another prompts"),
    ({"guidance": 2.0, "count": 2}, "another count, another guidance"),
    ({"steps": 2}, "another sampling"),
    ({"style": 1}, "another style"),
])  # fmt: skip
def test_a_study_of_other_inputs_is_refused(change, said, finished, tmp_path):
    asked, _ = finished
    before = stored(asked.work)
    if "style" in change:
        tensors = load_file(source_of(asked, "style"))
        name = next(name for name in tensors if name.endswith("lora_up.weight"))
        other = edited(Path(source_of(asked, "style")), tmp_path / "other.safetensors", **{name: tensors[name] + 1})
        change = {"merge": with_source(asked.merge, "style", other)}
    with pytest.raises(LcmMergeError, match=said) as caught:
        search(replace(asked, **change))
    assert caught.value.details
    assert stored(asked.work) == before


@pytest.mark.parametrize(("change", "said"), [
    ({"axes": {}}, "nothing to search"),
    ({"axes": {"lora": (1.0,)}}, "no such term"),
    ({"axes": {"lcm": (0.0,)}}, "accelerates nothing"),
    ({"axes": {"lcm": (float("nan"),)}}, "no finite"),
    ({"prompts": ("a fox",)}, "one image alone"),
    ({"objective": "beauty"}, "no such objective"),
    ({"storage": "sqlite:////nowhere/study.db"}, "unable to open database file"),
    ({"storage": "nonsense"}, "not the URL of a database"),
])  # fmt: skip
def test_faults(change, said, asked):
    with pytest.raises((LcmMergeError, NotFoundError), match=said) as caught:
        search(replace(asked, **change))
    assert caught.value.hint
    assert "\n" not in caught.value.message


@pytest.mark.e2e
def test_two_processes_share_the_cells_and_one_is_killed(asked):
    """The other draws what it left, and nothing that it finished."""
    axes = {"style": (0.5, 1.0), "lcm": tuple(number / 10 for number in range(1, 6))}
    wide = replace(asked, axes=axes, batch=2)
    with Child(searched, wide) as one, Child(searched, wide) as other:
        until(lambda: len(workers(asked)) == 2 and len(stored(asked.work)) > 6)
        one.send_signal(signal.SIGKILL)
        before = stored(asked.work)
        out = other.communicate(timeout=200)[0]
    assert (other.returncode, out) == (0, "15\n")  # 12 cells, and three that they are compared with
    assert stored(asked.work).items() >= before.items()
    assert dict(recorded(asked, "SELECT state, COUNT(*) FROM trials GROUP BY state"))["COMPLETE"] == 12
    assert not list(asked.work.rglob(".*partial"))
    after = stored(asked.work)
    result = search(replace(asked, axes=axes))
    assert len(result.scored.rows) == 15
    assert stored(asked.work) == after


def workers(asked):
    query = "SELECT DISTINCT value_json FROM trial_user_attributes WHERE key = 'worker'"
    return recorded(asked, query) if (asked.work / "study.db").exists() else []


def recorded(asked, query):
    with closing(sqlite3.connect(asked.work / "study.db", timeout=60)) as database:
        try:
            return database.execute(query).fetchall()
        except sqlite3.OperationalError:  # its tables are not there yet
            return []


def source_of(asked, name):
    """The reference of a term of the merge that is searched."""
    return next(term.source.reference for term in asked.merge.terms if term.name == name)


def with_source(merge, name, path):
    """The merge with another file for a term."""
    terms = [replace(term, source=Source(str(path))) if term.name == name else term for term in merge.terms]
    return replace(merge, terms=tuple(terms))

"""A study's folder may be one of the user's: a search replaces and removes its own files alone."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from fusing import Files
from merging import merge_of

from lcmmerge.errors import FormatError, OutputError
from lcmmerge.search.request import SearchRequest
from lcmmerge.search.run import search

WRITTEN = {"report.html", "sheet.png", "study.json", "trials.csv"}


@pytest.fixture(scope="module")
def first(files: Callable[[str], Files], tmp_path_factory: pytest.TempPathFactory) -> SearchRequest:
    """A search that was made once."""
    inputs = files("sd1")
    merge = merge_of(str(inputs.folder("fp32")), style=str(inputs.style), lcm=str(inputs.lcm), accelerator="lcm")
    work = tmp_path_factory.mktemp("study") / "work"
    asked = SearchRequest(
        merge, work, ("a fox", "a hat"), {"lcm": (1.0,)}, steps=1, count=1, size=(64, 64), guidance=1, teacher_steps=2
    )
    search(asked)
    return asked


@pytest.fixture
def asked(first: SearchRequest, tmp_path: Path) -> SearchRequest:
    """The same of a folder of its own."""
    return replace(first, work=tmp_path / "work")


def test_what_a_search_wrote_is_recorded_and_replaced(first: SearchRequest) -> None:
    record = json.loads((first.work / "files.json").read_text())["files"]
    assert record.keys() == WRITTEN
    (first.work / "report.html").unlink()
    search(first)
    assert (first.work / "report.html").exists()


@pytest.mark.parametrize("name", sorted({*WRITTEN, "sheet-2.png"}))
@pytest.mark.parametrize("link", [False, True])
def test_the_users_own_is_refused_before_anything_is_drawn(name: str, link: bool, asked: SearchRequest) -> None:
    asked.work.mkdir()
    mine = asked.work / name
    if link:
        (asked.work.parent / "precious").write_text("mine")
        mine.symlink_to("../precious")
    else:
        mine.write_text("mine")
    with pytest.raises(OutputError, match="did not make") as refused:
        search(asked)
    assert refused.value.details == (str(mine),)
    assert mine.read_text() == "mine"
    assert [path.name for path in asked.work.iterdir()] == [name]


def test_force_replaces_what_has_a_results_name_and_nothing_else(asked: SearchRequest) -> None:
    asked.work.mkdir()
    for name in ("report.html", "sheet-music.png", "sheet-2.png", "notes.txt"):
        (asked.work / name).write_text("mine")
    search(replace(asked, force=True))
    assert (asked.work / "report.html").read_text() != "mine"
    assert {name: (asked.work / name).read_text() for name in ("sheet-music.png", "sheet-2.png", "notes.txt")} == (
        dict.fromkeys(("sheet-music.png", "sheet-2.png", "notes.txt"), "mine")
    )


def test_a_page_of_an_earlier_search_goes(first: SearchRequest) -> None:
    content, record = b"an earlier search's", first.work / "files.json"
    (first.work / "sheet-2.png").write_bytes(content)
    with pytest.raises(OutputError, match="did not make"):
        search(first)
    known = json.loads(record.read_text())
    known["files"]["sheet-2.png"] = [hashlib.sha256(content).hexdigest()]
    record.write_text(json.dumps(known))
    search(first)
    assert not (first.work / "sheet-2.png").exists()


@pytest.mark.parametrize("name", ["study.db", "latents"])
def test_a_folder_that_leads_elsewhere(name: str, asked: SearchRequest, tmp_path: Path) -> None:
    asked.work.mkdir()
    (tmp_path / "victim").mkdir()
    (tmp_path / "victim" / "places.sqlite").write_bytes(b"")
    (asked.work / name).symlink_to(tmp_path / "victim" / ("places.sqlite" if name == "study.db" else ""))
    with pytest.raises(FormatError, match="symbolic link"):
        search(asked)
    assert [path.stat().st_size for path in (tmp_path / "victim").iterdir()] == [0]


@pytest.mark.parametrize("content", ["[]", "{", '{"files": {"../x": ["0"]}}', '{"files": {"report.html": "0"}}'])
def test_a_record_that_is_none_makes_nothing_ours(content: str, asked: SearchRequest) -> None:
    asked.work.mkdir()
    (asked.work / "files.json").write_text(content)
    with pytest.raises(OutputError, match="did not make"):  # nor is it ours itself
        search(asked)
    (asked.work / "report.html").write_text("mine")
    with pytest.raises(OutputError, match="did not make"):
        search(asked)
    assert {path.name: path.read_text() for path in asked.work.iterdir()} == (
        {"files.json": content, "report.html": "mine"}
    )

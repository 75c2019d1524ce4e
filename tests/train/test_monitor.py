from __future__ import annotations

import csv
import math
import re
from pathlib import Path

import pytest

from lcmmerge.output import Output
from lcmmerge.train.checkpoint import Best
from lcmmerge.train.monitor import Average, Monitor
from lcmmerge.train.trainer import Stepped

ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def train(monitor: Monitor, steps: range) -> None:
    """Steps whose loss is 1 / step, scored and saved at every second one."""
    with monitor:
        for step in steps:
            monitor.stepped(Stepped(step, 1 / step, 1e-4, 0.5, 0.25))
            if step % 2 == 0:
                monitor.validated(step, 10 / step, Best(10 / step, step))
                monitor.saved(step)


def rows(path: Path) -> list[dict[str, float]]:
    with path.open() as file:
        return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]


def test_log_scores_and_sheets(tmp_path: Path) -> None:
    drawn: list[Path] = []
    train(Monitor(tmp_path / "work", 0, 4, Output(quiet=True), drawn.append), range(1, 5))
    log = rows(tmp_path / "work" / "log.csv")
    assert [row["step"] for row in log] == [1, 2, 3, 4]
    assert log[2] == pytest.approx({"step": 3, "loss": 1 / 3, "rate": 1e-4, "gradient_norm": 0.5, "seconds": 0.25})
    assert rows(tmp_path / "work" / "scores.csv") == [{"step": 2, "score": 5}, {"step": 4, "score": 2.5}]
    assert [path.relative_to(tmp_path).as_posix() for path in drawn] == [
        "work/sheets/step-000002.png",
        "work/sheets/step-000004.png",
    ]


def test_a_row_is_on_the_disk_as_soon_as_its_step_is_done(tmp_path: Path) -> None:
    with Monitor(tmp_path, 0, 4, Output(quiet=True)) as monitor:
        monitor.stepped(Stepped(1, 0.5, 1e-4, 0.5, 0.25))
        assert len(rows(tmp_path / "log.csv")) == 1


def test_a_resumed_log_is_the_unbroken_one(tmp_path: Path) -> None:
    """What came after the checkpoint is gone, and so is the line that the crash cut short."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    train(Monitor(whole, 0, 6, Output(quiet=True)), range(1, 7))
    train(Monitor(broken, 0, 6, Output(quiet=True)), range(1, 5))
    with (broken / "log.csv").open("a") as file:
        file.write("5,0.2,0.00")
    train(Monitor(broken, 2, 6, Output(quiet=True)), range(3, 7))
    for name in ("log.csv", "scores.csv"):
        assert (broken / name).read_bytes() == (whole / name).read_bytes(), name


def test_what_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    train(Monitor(tmp_path / "quiet", 0, 4, Output(quiet=True)), range(1, 5))
    assert capsys.readouterr() == ("", "")
    train(Monitor(tmp_path / "piped", 0, 4, Output()), range(1, 5))
    out, err = capsys.readouterr()
    assert out == ""
    lines = err.splitlines()
    assert lines[0].startswith("step 1/4, loss 1, rate 0.0001, gradient 0.5, s/step 0.25, left 0:00:01, memory ")
    assert "step 2: validation score 5, best 5 at step 2" in lines
    assert lines[-1] == "step 4: saved"
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "120")
    train(Monitor(tmp_path / "terminal", 0, 4, Output()), range(1, 5))
    out, err = capsys.readouterr()
    assert out == ""
    shown = {word.strip() for word in ANSI.sub("", err).replace("\n", "  ").split("  ")}
    assert {"s/step", "left", "4/4", "5 at 2"} <= shown


def test_the_average_has_no_bias_towards_zero() -> None:
    average = Average(0.9)
    assert [average.add(3.0) for _ in range(4)] == pytest.approx([3.0] * 4)
    assert math.isclose(average.add(13.0), 3 + 10 * 0.1 / (1 - 0.9**5))

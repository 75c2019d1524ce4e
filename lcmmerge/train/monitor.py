"""Looks on while a network trains: a live table, log.csv, sheets, TensorBoard.

``log.csv`` has a row for each step, ``scores.csv`` one for each validation. A resumed run cuts both back to the
checkpoint that it goes on from, so that they are those of an unbroken run but for the seconds.
"""

from __future__ import annotations

import math
import resource
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch

from lcmmerge.output import Output, size
from lcmmerge.tensors.staging import replace_with
from lcmmerge.train.checkpoint import Best
from lcmmerge.train.trainer import Stepped

LOG, SCORES, SHEETS, BOARD = "log.csv", "scores.csv", "sheets", "tensorboard"
LOG_COLUMNS = ("step", "loss", "rate", "gradient_norm", "seconds")
SCORE_COLUMNS = ("step", "score")
INTERVAL = 30.0  # seconds between two lines where there is no terminal
RECENT = 50  # steps, of which the time left is told


class Monitor:
    """A trainer's ``Watch``, within ``with``. ``first``: the step that the run goes on from; ``steps``: all of them.

    ``sheet``: writes what the networks last drew to the path it is given. All of it raises OutputError or OSError.
    """

    def __init__(
        self, folder: Path, first: int, steps: int, output: Output, sheet: Callable[[Path], None] | None = None
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.steps, self.output, self._sheet = folder, steps, output, sheet
        self._log = Journal(folder / LOG, LOG_COLUMNS, first)
        self._scores = Journal(folder / SCORES, SCORE_COLUMNS, first)
        self._board = _board(folder / BOARD, first)
        self._best: Best | None = None
        self._seconds: deque[float] = deque(maxlen=RECENT)
        self._average, self._loss = Average(), math.nan
        for _, loss, *_ in self._log.rows:
            self._loss = self._average.add(loss)
        self._live = ExitStack()
        self._show: Callable[[dict[str, str]], None] | None = None
        self._spoke = -math.inf

    def __enter__(self) -> Self:
        self._show = self._live.enter_context(self.output.status())
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._live.close()
        if self._board:
            self._board.close()

    def stepped(self, stepped: Stepped) -> None:
        values = (stepped.loss, stepped.rate, stepped.gradient_norm, stepped.seconds)
        self._log.add(stepped.step, *values)
        self._seconds.append(stepped.seconds)
        self._loss = self._average.add(stepped.loss)
        if self._board:
            for name, value in zip(LOG_COLUMNS[1:], values, strict=True):
                self._board.add_scalar(name, value, stepped.step)
        facts = self._facts(stepped)
        if self._show:
            self._show(facts)
        elif time.monotonic() - self._spoke > INTERVAL or stepped.step == self.steps:
            self._spoke = time.monotonic()
            self.output.note(", ".join(f"{name} {value}" for name, value in facts.items()))

    def validated(self, step: int, score: float, best: Best) -> None:
        self._best = best
        self._scores.add(step, score)
        if self._board:
            self._board.add_scalar("score", score, step)
        if self._sheet:
            self._sheet(self.folder / SHEETS / f"step-{step:06d}.png")
        self._say(f"step {step}: validation score {score:.5g}, best {best.score:.5g} at step {best.step}")

    def saved(self, step: int) -> None:
        self._say(f"step {step}: saved")

    def _say(self, text: str) -> None:
        if not self._show:
            self.output.note(text)

    def _facts(self, stepped: Stepped) -> dict[str, str]:
        each = sum(self._seconds) / len(self._seconds)
        left = timedelta(seconds=round(each * (self.steps - stepped.step)))
        facts = {
            "step": f"{stepped.step}/{self.steps}",
            "loss": f"{self._loss:.4g}",
            "rate": f"{stepped.rate:.3g}",
            "gradient": f"{stepped.gradient_norm:.3g}",
            "s/step": f"{each:.3g}",
            "left": str(left),
            "memory": size(_memory()),
        }
        return facts | ({"best": f"{self._best.score:.4g} at {self._best.step}"} if self._best else {})


class Blind:
    """A ``Watch`` that sees and writes nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None: ...

    def stepped(self, stepped: Stepped) -> None: ...

    def validated(self, step: int, score: float, best: Best) -> None: ...

    def saved(self, step: int) -> None: ...


class Average:
    """An exponential moving average without the bias towards its start, as Adam's (https://arxiv.org/abs/1412.6980)."""

    def __init__(self, keep: float = 0.98) -> None:
        self._keep, self._sum, self._weight = keep, 0.0, 0.0

    def add(self, value: float) -> float:
        """The average with ``value``."""
        self._sum = self._keep * self._sum + (1 - self._keep) * value
        self._weight = self._keep * self._weight + 1 - self._keep
        return self._sum / self._weight


class Journal:
    """A CSV file that grows by whole lines, the first column a step; it begins with its ``rows`` up to ``first``."""

    def __init__(self, path: Path, columns: Sequence[str], first: int) -> None:
        self._path = path
        self.rows = [row for row in _read(path, len(columns)) if row[0] <= first]
        replace_with(path, "".join(f"{line}\n" for line in (",".join(columns), *map(_line, self.rows))).encode())

    def add(self, *row: float) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(_line(row) + "\n")


def _read(path: Path, columns: int) -> list[tuple[float, ...]]:
    """The rows up to the first that is none: a crash may have cut a line short."""
    rows: list[tuple[float, ...]] = []
    for line in path.read_text("utf-8", "replace").splitlines()[1:] if path.is_file() else ():
        try:
            step, *numbers = line.split(",")
            row = (int(step), *map(float, numbers))
        except ValueError:
            break
        if len(row) != columns:
            break
        rows.append(row)
    return rows


def _line(row: Sequence[float]) -> str:
    return ",".join(f"{cell:.9g}" for cell in row)


def _memory() -> int:
    """The most that was taken: of the GPU where one is used, else of this machine's."""
    if torch.cuda.is_available() and (taken := torch.cuda.max_memory_allocated()):
        return taken
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _board(folder: Path, first: int) -> Any:
    """TensorBoard's writer where it is installed (the extra ``train``)."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder), purge_step=first + 1)

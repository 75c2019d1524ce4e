"""Studies without a model, for tests: cells whose merits are planted, drawn by a way that writes down what it drew."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from zlib import crc32

import torch
from searching import impatient
from torch import Tensor

from lcmmerge.draw.jobs import Job, jobs_of
from lcmmerge.draw.presets import Preset
from lcmmerge.search.database import Database
from lcmmerge.search.drawing import Drawing, Sampled
from lcmmerge.search.objectives import objectives
from lcmmerge.search.order import Cell
from lcmmerge.search.score import Scored, score
from lcmmerge.search.store import Store
from lcmmerge.search.study import Ask, Study
from lcmmerge.search.trials import Trials

PROMPTS = tuple(f"prompt {number}" for number in range(12))
ASK = Ask(tuple(jobs_of(PROMPTS, (64, 64), count=3)), Preset("lcm", "LCMScheduler", 4, 1.0), 4, 2, 1, 1.0, halving=3)
BEST = (0.8, 1.0)
GRID = [(style, lcm) for style in (0.4, 0.8, 1.2) for lcm in (0.5, 1.0, 1.4)]


@dataclass
class Planted:
    """A cell is the farther from the teacher the farther its λs are from ``BEST``.

    ``log``: a line for each image; ``seconds``: what a drawing takes; ``stop``: after how many it is interrupted.
    """

    log: Path
    seconds: float = 0.0
    stop: float = float("inf")
    at_once: int = 2
    drawn: list[Drawing] = field(default_factory=list)

    def __call__(self, drawings: Sequence[Drawing]) -> Iterator[Sampled]:
        for drawing in drawings:
            if len(self.drawn) >= self.stop:
                raise KeyboardInterrupt
            self.drawn.append(drawing)
            time.sleep(self.seconds)
            with self.log.open("a") as log:
                lines = ([drawing.kind, drawing.preset.steps, *drawing.cell.lambdas, *key(job)] for job in drawing.jobs)
                log.writelines(json.dumps(line) + "\n" for line in lines)
            yield Sampled(drawing, torch.stack([image(drawing, job) for job in drawing.jobs]))

    def set(self, cell: Cell) -> None:
        pass


def key(job: Job) -> tuple[str, int]:
    return job.prompt, job.seed


def image(drawing: Drawing, job: Job) -> Tensor:
    """[4, 8, 8]: depends on the job and on the distance alone."""
    if drawing.preset.steps == ASK.teacher_steps:
        distance = 0.0
    elif drawing.preset != ASK.preset:  # the baseline
        distance = 1.5
    else:
        distance = sum(abs(ours - best) for ours, best in zip(drawing.cell.lambdas, BEST, strict=True))
    generator = torch.Generator().manual_seed(crc32(repr(key(job)).encode()))
    own, other = torch.randn((2, 4, 8, 8), generator=generator)
    return own * (1 + 0.3 * distance) + distance * (0.5 * other + 0.3)


def run(work: Path, cells: Sequence[tuple[float, float]], way: Planted, ask: Ask = ASK, *, sampled: int = 0,
        front: bool = False) -> Scored:  # fmt: skip
    """A study in the folder ``work``, as ``search`` runs it."""
    known = objectives()
    chosen = [known["teacher"], known["style"]] if front else [known["teacher"]]
    work.mkdir(exist_ok=True)
    bounds = {"style": (0.4, 1.2), "lcm": (0.0, 1.4)}
    with (
        closing(Database(f"sqlite:///{work / 'study.db'}", work)) as database,
        closing(Trials(database, {"front": front}, bounds, [False] * len(chosen))) as trials,
    ):
        study = Study(ask, Store(work / "latents", {}, database), trials, lambda: way, chosen, lambda drawn: None)
        drawn = study.run([*map(Cell, cells)], sampled)
    return score(drawn, [4] * len(drawn), known["teacher"], known["style"], ask, Cell(BEST))


def drawn_twice(log: Path) -> list[str]:
    """Lines of the log that are there more than once."""
    lines = log.read_text().splitlines()
    return sorted({line for line in lines if lines.count(line) > 1})


def whole(ask: Ask) -> Ask:
    """Without halving."""
    return replace(ask, halving=0)


def planted(work: Path, log: Path) -> None:
    """For a process of its own: it takes its time, and prints what it found."""
    impatient()
    found = run(work, GRID, Planted(log, seconds=0.05))
    sys.stdout.write(json.dumps(found.as_dict()))

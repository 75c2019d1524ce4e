"""A study: cells of λ, drawn by whoever is free, scored against the style model's many-step samples.

Every study holds what the merge must beat: the control (λ = 0 for the accelerator, with the few-step scheduler), and
DPM-Solver++ on the style model at as many evaluations of the U-Net, with guidance and without; and the distance between
two draws of the teacher, below which no difference means anything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from math import ceil

import torch

from lcmmerge.draw.jobs import Job
from lcmmerge.draw.presets import BASELINES, Preset, of_sampling
from lcmmerge.errors import LcmMergeError
from lcmmerge.search.drawing import Drawer, Drawing, Gallery, Sampled
from lcmmerge.search.objectives import Objective, Samples
from lcmmerge.search.order import Cell
from lcmmerge.search.statistics import once
from lcmmerge.search.store import Store
from lcmmerge.search.trials import Claim, Trials, Wanted

TEACHER, FLOOR, BASELINE = "teacher", "teacher, other seeds", "DPM-Solver++"
CONTROL, CELL = "no accelerator", "cell"
OTHER_SEEDS = 1 << 20  # the floor's seeds are the teacher's plus this
DPM = "dpm-solver++"
TEACHER_STEPS = 25
FEWEST = 4  # images by which cells are ranked


@dataclass(frozen=True, slots=True)
class Ask:
    """What a study draws and compares.

    ``jobs``: prompts × seeds. ``preset``: the few-step one, which evaluates the U-Net ``evaluations`` times.

    ``terms``: how many; ``accelerator``: which of them it is. ``guidance``: of the teacher and of the baseline.
    ``blocks``: for each block factor that follows a cell's λs, which term it is of. ``halving``: the share of cells
    that go on from one rung to the next is 1 / ``halving``; with 0 all cells are drawn whole. ``teacher_steps``: of the
    teacher's and the floor's images.
    """

    jobs: tuple[Job, ...]
    preset: Preset
    evaluations: int
    terms: int
    accelerator: int
    guidance: float
    blocks: tuple[int, ...] = ()
    halving: int = 0
    teacher_steps: int = TEACHER_STEPS

    @property
    def styled(self) -> Cell:
        """The style model: every λ is 1, and the accelerator's 0."""
        return self.without_accelerator(Cell((1.0,) * self.terms, (1.0,) * len(self.blocks)))

    @property
    def rungs(self) -> tuple[tuple[int, ...], ...]:
        """Numbers of jobs: those that all cells are drawn for, then more for fewer cells, at last all of them.

        Prompts come before their further seeds.
        """
        sizes = [len(self.jobs)]
        while self.halving and sizes[0] >= FEWEST * self.halving:
            sizes.insert(0, ceil(sizes[0] / self.halving))
        order = sorted(range(len(self.jobs)), key=lambda number: (self.jobs[number].seed, number))
        return tuple(tuple(sorted(order[:size])) for size in sizes)

    def drawing(self, cell: Cell, rung: int = -1) -> Drawing:
        """As far as a rung goes; by default to the last."""
        return Drawing(CELL, cell, self.preset, tuple(self.jobs[number] for number in self.rungs[rung]))

    def parts(self, cell: Cell, rung: int) -> list[Drawing]:
        """What a cell is drawn in, up to a rung; a control at once."""
        if self.is_control(cell):
            return [self.drawing(cell)]
        added = (set(later) - set(earlier) for earlier, later in pairwise([(), *self.rungs[: rung + 1]]))
        return [Drawing(CELL, cell, self.preset, tuple(self.jobs[number] for number in sorted(numbers)))
                for numbers in added]  # fmt: skip

    def images(self, cells: int, controls: int) -> int:
        """How many are drawn for so many cells."""
        found = controls * len(self.jobs)
        for earlier, later in pairwise([(), *self.rungs]):
            found += cells * (len(later) - len(earlier))
            cells = ceil(cells / max(1, self.halving))
        return found

    def added(self, drawing: Drawing) -> int:
        """How many of its images are new at its rung."""
        sizes = [0, *map(len, self.rungs)]
        whole = drawing.kind != CELL or self.is_control(drawing.cell)
        return len(drawing.jobs) - (0 if whole else sizes[sizes.index(len(drawing.jobs)) - 1])

    def numbers(self, drawing: Drawing) -> Sequence[int]:
        """Which of the jobs it has; a drawing of other seeds has them all."""
        return range(len(self.jobs)) if drawing.kind == FLOOR else [self.jobs.index(job) for job in drawing.jobs]

    def is_control(self, cell: Cell) -> bool:
        return not cell.lambdas[self.accelerator]

    def without_accelerator(self, cell: Cell) -> Cell:
        """Its block factors count for nothing then."""
        lambdas = (0.0 if term == self.accelerator else value for term, value in enumerate(cell.lambdas))
        factors = zip(self.blocks, cell.factors, strict=True)
        return Cell(tuple(lambdas), tuple(1.0 if term == self.accelerator else value for term, value in factors))

    def with_controls(self, cells: Iterable[Cell]) -> set[Cell]:
        """Each cell, and what it is without the accelerator."""
        cells = set(cells)
        return {*cells, *map(self.without_accelerator, cells)}


def compared(ask: Ask) -> list[Drawing]:
    """The teacher, the floor, the control, and the baselines, which never evaluate the U-Net more often than it."""
    many = replace(of_sampling(DPM, BASELINES[DPM]), steps=ask.teacher_steps, guidance=ask.guidance)
    others = tuple(replace(job, seed=job.seed + OTHER_SEEDS) for job in ask.jobs)
    found = [
        Drawing(TEACHER, ask.styled, many, ask.jobs),
        Drawing(FLOOR, ask.styled, many, others),
        Drawing(CONTROL, ask.styled, ask.preset, ask.jobs),
    ]
    few = [(1.0, ask.evaluations)]
    if ask.guidance > 1:
        few.append((ask.guidance, ask.evaluations // 2))
    for guidance, steps in few:
        if steps:
            preset = replace(many, steps=steps, guidance=guidance)
            found.append(Drawing(BASELINE, ask.styled, preset, ask.jobs))
    return found


@dataclass(frozen=True, slots=True)
class Study:
    """A study being worked on: which cells are done, which are next.

    ``drawer``: loads what draws, when it is first asked for. ``objectives``: by which Optuna chooses.

    ``done`` is told of each drawing that is there.
    """

    ask: Ask
    store: Store
    trials: Trials
    drawer: Callable[[], Drawer]
    objectives: Sequence[Objective]
    done: Callable[[Sampled], None]
    samples: Callable[[Sampled], Samples | None] = field(default_factory=Gallery)

    def run(self, cells: Sequence[Cell], sampled: int = 0) -> list[Sampled]:
        """Draw what is not drawn yet: what cells are compared with, then ``cells`` in order, then Optuna's choices.

        At each rung the best cells go on: which they are depends on no order, and on no number of processes. A cell
        whose weights or images are NaN fails, and the study goes on. What an earlier run or another process did is
        among what is returned. Raises OutputError, LcmMergeError.
        """
        found = []
        for drawing in compared(self.ask):
            found.append(self._stored(drawing))
            self.done(found[-1])
        worth = self._worth(found)
        last = len(self.ask.rungs) - 1
        wanted = [Wanted(cell, last) for cell in cells if self.ask.is_control(cell)]
        wanted += [Wanted(cell, 0) for cell in cells if not self.ask.is_control(cell)]
        wanted += [Wanted(choice, 0) for choice in range(sampled)]
        for rung in range(last + 1):
            for claims in self.trials.claims(wanted, lambda: self.drawer().at_once):
                for claim, drawn in zip(claims, self._draw(claims), strict=True):
                    self._tell(claim, drawn, worth)
            wanted = [Wanted(cell, rung + 1) for cell in self._survivors(rung)]
        found += self._cells()
        known = {one.drawing.cell for one in found if one.drawing.kind == CELL}
        return [one for one in found if one.drawing.kind != CONTROL or one.drawing.cell not in known]

    def _stored(self, drawing: Drawing) -> Sampled:
        """From the store; drawn here where it is not there."""
        latents = self.store.get(drawing)
        return Sampled(drawing, latents) if latents is not None else self._kept(next(self.drawer()([drawing])))

    def _survivors(self, rung: int) -> list[Cell]:
        """The best cells of a rung."""
        here = [done for done in self.trials.finished() if done.rung == rung and not self.ask.is_control(done.cell)]
        alive = sorted((done for done in here if not done.fault), key=lambda done: (done.value, done.cell))
        return [done.cell for done in alive[: ceil(len(here) / max(1, self.ask.halving))]]

    def _cells(self) -> list[Sampled]:
        """Every cell as far as it came."""
        farthest = {done.cell: done for done in sorted(self.trials.finished(), key=lambda done: done.rung)}
        found = []
        for cell, done in farthest.items():
            parts = [] if done.fault else [self._stored(part) for part in self.ask.parts(cell, done.rung)]
            failed = Sampled(self.ask.drawing(cell, done.rung), None, done.fault)
            found.append(self._whole(cell, done.rung, parts) if parts else failed)
        return found

    def _draw(self, claims: Sequence[Claim]) -> list[Sampled]:
        """What a killed run drew and did not come to tell is taken from the store."""
        wanted = [self.ask.parts(claim.cell, claim.rung) for claim in claims]
        stored = [[Sampled(part, self.store.get(part)) for part in parts] for parts in wanted]
        missing = [one.drawing for parts in stored for one in parts if one.latents is None]
        drawn = [self._kept(one) for one in self.drawer()(missing)] if missing else []
        found = {(one.drawing.cell, one.drawing.jobs): one for one in drawn}
        return [
            self._whole(claim.cell, claim.rung, [found.get((one.drawing.cell, one.drawing.jobs), one) for one in parts])
            for claim, parts in zip(claims, stored, strict=True)
        ]

    def _whole(self, cell: Cell, rung: int, parts: Sequence[Sampled]) -> Sampled:
        """A cell of its parts, its jobs in their order."""
        drawing = self.ask.drawing(cell, rung)
        if faults := [part.fault for part in parts if part.latents is None]:
            return Sampled(drawing, None, faults[0])
        place = {job: number for number, job in enumerate(job for part in parts for job in part.drawing.jobs)}
        latents = torch.cat([part.latents for part in parts if part.latents is not None])
        return Sampled(drawing, latents[[place[job] for job in drawing.jobs]])

    def _kept(self, drawn: Sampled) -> Sampled:
        if drawn.latents is not None:
            self.store.put(drawn.drawing, drawn.latents)
        return drawn

    def _tell(self, claim: Claim, drawn: Sampled, worth: Sequence[_Worth]) -> None:
        if drawn.latents is None:
            self.trials.fail(claim, drawn.fault)
        else:
            ours = self.samples(drawn)
            assert ours
            self.trials.finish(claim, *worth[claim.rung](ours))
        self.done(drawn)

    def _worth(self, found: Sequence[Sampled]) -> list[_Worth]:
        """For each rung."""
        of_kind = {one.drawing.kind: self.samples(one) for one in found}
        teacher, control = of_kind[TEACHER], of_kind[CONTROL]
        if teacher is None:
            raise LcmMergeError("the teacher's images are NaN", "the style itself draws nothing: try --dtype fp32")
        return [
            _Worth.of(self.objectives, teacher.of(numbers), control.of(numbers) if control else None)
            for numbers in self.ask.rungs
        ]


@dataclass(frozen=True, slots=True)
class _Worth:
    """What Optuna is told: for each objective the mean of a cell's figures, each as a multiple of the control's.

    z-scores would need all the cells. Without a control the figures count as they are.
    """

    objectives: Sequence[Objective]
    teacher: Samples
    units: Mapping[str, float]

    @classmethod
    def of(cls, objectives: Sequence[Objective], teacher: Samples, control: Samples | None) -> _Worth:
        units = [figures(objective, control, teacher) for objective in objectives] if control else []
        return cls(objectives, teacher, {name: value for found in units for name, value in found.items()})

    def __call__(self, ours: Samples) -> tuple[list[float], dict[str, float]]:
        values: list[float] = []
        found: dict[str, float] = {}
        for objective in self.objectives:
            own = figures(objective, ours, self.teacher)
            ratios = [value / max(abs(self.units.get(name, 1.0)), 1e-12) for name, value in own.items()]
            values.append(sum(ratios) / len(ratios))
            found |= own
        return values, found


def figures(objective: Objective, ours: Samples, theirs: Samples) -> dict[str, float]:
    measured = objective.measure(ours, theirs)
    return {name: float(statistic(once(len(ours.latents)))) for name, statistic in measured.items()}

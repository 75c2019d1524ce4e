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

from lcmmerge.errors import LcmMergeError
from lcmmerge.sample.jobs import Job
from lcmmerge.sample.presets import BASELINES, Preset, of_sampling
from lcmmerge.studies.drawing import Drawing, Drawn, Way
from lcmmerge.studies.gallery import Gallery
from lcmmerge.studies.objectives import Objective, Samples
from lcmmerge.studies.order import Strengths
from lcmmerge.studies.statistics import once
from lcmmerge.studies.store import Store
from lcmmerge.studies.trials import Claim, Trials

TEACHER, FLOOR, BASELINE = "teacher", "teacher, other seeds", "DPM-Solver++"
CONTROL, CELL = "no accelerator", "cell"
OTHER_SEEDS = 1 << 20  # the floor's seeds are the teacher's plus this
DPM = "dpm-solver++"
TEACHER_STEPS = 25
FEWEST = 4  # images by which cells are ranked


@dataclass(frozen=True, slots=True)
class Ask:
    """``jobs``: prompts × seeds. ``preset``: the few-step one, which evaluates the U-Net ``evaluations`` times.

    ``terms``: how many; ``accelerator``: which of them it is. ``guidance``: of the teacher and of the baseline.
    ``blocks``: for each block factor that follows a cell's λs, which term it is of. ``halving``: the share of cells
    that go on from one rung to the next is 1 / ``halving``; with 0 all cells are drawn whole.
    """

    jobs: tuple[Job, ...]
    preset: Preset
    evaluations: int
    terms: int
    accelerator: int
    guidance: float
    blocks: tuple[int, ...] = ()
    halving: int = 0

    @property
    def styled(self) -> Strengths:
        """The style model: every λ is 1, and the accelerator's 0."""
        return self.without_accelerator((1.0,) * (self.terms + len(self.blocks)))

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

    def cell(self, strengths: Strengths, rung: int = -1) -> Drawing:
        """As far as a rung goes; by default to the last."""
        return Drawing(CELL, strengths, self.preset, tuple(self.jobs[number] for number in self.rungs[rung]))

    def parts(self, strengths: Strengths, rung: int) -> list[Drawing]:
        """What a cell is drawn in, up to a rung; a control at once."""
        if self.is_control(strengths):
            return [self.cell(strengths)]
        added = (set(later) - set(earlier) for earlier, later in pairwise([(), *self.rungs[: rung + 1]]))
        return [Drawing(CELL, strengths, self.preset, tuple(self.jobs[number] for number in sorted(numbers)))
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
        whole = drawing.kind != CELL or self.is_control(drawing.strengths)
        return len(drawing.jobs) - (0 if whole else sizes[sizes.index(len(drawing.jobs)) - 1])

    def numbers(self, drawing: Drawing) -> Sequence[int]:
        """Which of the jobs it has; a drawing of other seeds has them all."""
        return range(len(self.jobs)) if drawing.kind == FLOOR else [self.jobs.index(job) for job in drawing.jobs]

    def is_control(self, strengths: Strengths) -> bool:
        return not strengths[self.accelerator]

    def without_accelerator(self, strengths: Strengths) -> Strengths:
        """Its block factors count for nothing then."""
        lambdas = [0.0 if term == self.accelerator else value for term, value in enumerate(strengths[: self.terms])]
        factors = zip(self.blocks, strengths[self.terms :], strict=True)
        return (*lambdas, *(1.0 if term == self.accelerator else value for term, value in factors))

    def with_controls(self, cells: Iterable[Strengths]) -> set[Strengths]:
        """Each cell, and what it is without the accelerator."""
        cells = set(cells)
        return {*cells, *map(self.without_accelerator, cells)}


def compared(ask: Ask) -> list[Drawing]:
    """The teacher, the floor, the control, and the baselines, which never evaluate the U-Net more often than it."""
    many = replace(of_sampling(DPM, BASELINES[DPM]), steps=TEACHER_STEPS, guidance=ask.guidance)
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
    """``way``: loads what draws, when it is first asked for. ``objectives``: what Optuna is told of, when it chooses.

    ``done`` is told of each drawing that is there.
    """

    ask: Ask
    store: Store
    trials: Trials
    way: Callable[[], Way]
    objectives: Sequence[Objective]
    done: Callable[[Drawn], None]
    samples: Callable[[Drawn], Samples | None] = field(default_factory=Gallery)

    def run(self, cells: Sequence[Strengths], sampled: int = 0) -> list[Drawn]:
        """Draw what is not drawn yet: what cells are compared with, then ``cells`` in order, then Optuna's choices.

        At each rung the best cells go on: which they are depends on no order, and on no number of processes. A cell
        whose weights or images are NaN fails, and the study goes on. What an earlier run or another process did is
        among what is returned. Raises OutputError, LcmMergeError.
        """
        found = []
        for drawing in compared(self.ask):
            found.append(self._shared(drawing))
            self.done(found[-1])
        worth = self._worth(found)
        last = len(self.ask.rungs) - 1
        self.trials.queue([cell for cell in cells if self.ask.is_control(cell)], rung=last)
        going = [cell for cell in cells if not self.ask.is_control(cell)]
        for rung in range(last + 1):
            self.trials.queue(going, 0 if rung else sampled, rung)
            for claims in self.trials.claims(lambda: self.way().at_once):
                for claim, drawn in zip(claims, self._draw(claims), strict=True):
                    self._tell(claim, drawn, worth)
            going = self._survivors(rung)
        found += self._cells()
        known = {one.drawing.strengths for one in found if one.drawing.kind == CELL}
        return [one for one in found if one.drawing.kind != CONTROL or one.drawing.strengths not in known]

    def _shared(self, drawing: Drawing) -> Drawn:
        """Drawn once, whatever number of processes ask for it."""
        with self.store.held(drawing):
            latents = self.store.get(drawing)
            return Drawn(drawing, latents) if latents is not None else self._kept(next(self.way()([drawing])))

    def _survivors(self, rung: int) -> list[Strengths]:
        """The best cells of a rung."""
        done = [cell for cell in self.trials.finished() if cell.rung == rung]
        here = [cell for cell in done if not self.ask.is_control(cell.strengths)]
        alive = sorted((cell for cell in here if not cell.fault), key=lambda cell: (cell.value, cell.strengths))
        return [cell.strengths for cell in alive[: ceil(len(here) / max(1, self.ask.halving))]]

    def _cells(self) -> list[Drawn]:
        """Every cell as far as it came."""
        farthest = {cell.strengths: cell for cell in sorted(self.trials.finished(), key=lambda cell: cell.rung)}
        found = []
        for strengths, cell in farthest.items():
            parts = [] if cell.fault else [self._shared(part) for part in self.ask.parts(strengths, cell.rung)]
            failed = Drawn(self.ask.cell(strengths, cell.rung), None, cell.fault)
            found.append(self._whole(strengths, cell.rung, parts) if parts else failed)
        return found

    def _draw(self, claims: Sequence[Claim]) -> list[Drawn]:
        """What a killed run drew and did not come to tell is taken from the store."""
        wanted = [self.ask.parts(claim.strengths, claim.rung) for claim in claims]
        stored = [[Drawn(part, self.store.get(part)) for part in parts] for parts in wanted]
        missing = [one.drawing for parts in stored for one in parts if one.latents is None]
        drawn = [self._kept(one) for one in self.way()(missing)] if missing else []
        found = {(one.drawing.strengths, one.drawing.jobs): one for one in drawn}
        return [
            self._whole(
                claim.strengths,
                claim.rung,
                [found.get((one.drawing.strengths, one.drawing.jobs), one) for one in parts],
            )
            for claim, parts in zip(claims, stored, strict=True)
        ]

    def _whole(self, strengths: Strengths, rung: int, parts: Sequence[Drawn]) -> Drawn:
        """A cell of its parts, its jobs in their order."""
        drawing = self.ask.cell(strengths, rung)
        if faults := [part.fault for part in parts if part.latents is None]:
            return Drawn(drawing, None, faults[0])
        place = {job: number for number, job in enumerate(job for part in parts for job in part.drawing.jobs)}
        latents = torch.cat([part.latents for part in parts if part.latents is not None])
        return Drawn(drawing, latents[[place[job] for job in drawing.jobs]])

    def _kept(self, drawn: Drawn) -> Drawn:
        if drawn.latents is not None:
            self.store.put(drawn.drawing, drawn.latents)
        return drawn

    def _tell(self, claim: Claim, drawn: Drawn, worth: Sequence[_Worth]) -> None:
        if drawn.latents is None:
            self.trials.fail(claim, drawn.fault)
        else:
            ours = self.samples(drawn)
            assert ours
            self.trials.finish(claim, *worth[claim.rung](ours))
        self.done(drawn)

    def _worth(self, found: Sequence[Drawn]) -> list[_Worth]:
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

"""A study: cells of λ, drawn by whoever is free, scored against the style model's many-step samples.

Every study holds what the merge must beat: the control (λ = 0 for the accelerator, with the few-step scheduler), and
DPM-Solver++ on the style model at as many evaluations of the U-Net, with guidance and without; and the distance between
two draws of the teacher, below which no difference means anything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from lcmmerge.errors import LcmMergeError
from lcmmerge.sample.jobs import Job
from lcmmerge.sample.presets import BASELINES, Preset, of_sampling
from lcmmerge.search.drawing import Drawing, Drawn, Way
from lcmmerge.search.objectives import Objective, Samples
from lcmmerge.search.order import Strengths
from lcmmerge.search.statistics import once
from lcmmerge.search.store import Store
from lcmmerge.search.trials import Claim, Trials

TEACHER, FLOOR, BASELINE = "teacher", "teacher, other seeds", "DPM-Solver++"
CONTROL, CELL = "no accelerator", "cell"
OTHER_SEEDS = 1 << 20  # the floor's seeds are the teacher's plus this
DPM = "dpm-solver++"
TEACHER_STEPS = 25


@dataclass(frozen=True, slots=True)
class Ask:
    """``jobs``: prompts × seeds. ``preset``: the few-step one, which evaluates the U-Net ``evaluations`` times.

    ``terms``: how many; ``accelerator``: which of them it is. ``guidance``: of the teacher and of the baseline.
    """

    jobs: tuple[Job, ...]
    preset: Preset
    evaluations: int
    terms: int
    accelerator: int
    guidance: float

    @property
    def styled(self) -> Strengths:
        """The style model: every λ is 1, and the accelerator's 0."""
        return tuple(0.0 if term == self.accelerator else 1.0 for term in range(self.terms))

    def cell(self, strengths: Strengths) -> Drawing:
        return Drawing(CELL, strengths, self.preset, self.jobs)

    def without_accelerator(self, strengths: Strengths) -> Strengths:
        return tuple(0.0 if term == self.accelerator else value for term, value in enumerate(strengths))

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
    """``way``: loads what draws, when it is first asked for. ``objective``: what Optuna is told of, when it chooses.

    ``done`` is told of each drawing that is there.
    """

    ask: Ask
    store: Store
    trials: Trials
    way: Callable[[], Way]
    objective: Objective
    done: Callable[[Drawn], None]

    def run(self, cells: Sequence[Strengths], sampled: int = 0) -> list[Drawn]:
        """Draw what is not drawn yet: what cells are compared with, then ``cells`` in order, then Optuna's choices.

        A cell whose weights or images are NaN fails, and the study goes on. What an earlier run or another process
        did is among what is returned. Raises OutputError, LcmMergeError.
        """
        found = []
        for drawing in compared(self.ask):
            found.append(self._shared(drawing))
            self.done(found[-1])
        worth = _Worth.of(self.objective, found)
        self.trials.queue(cells, sampled)
        for claims in self.trials.claims(lambda: self.way().at_once):
            for claim, drawn in zip(claims, self._draw([claim.strengths for claim in claims]), strict=True):
                self._tell(claim, drawn, worth)
        for cell in self.trials.finished():
            drawing = self.ask.cell(cell.strengths)
            found.append(Drawn(drawing, None, cell.fault) if cell.fault else self._shared(drawing))
        known = {one.drawing.strengths for one in found if one.drawing.kind == CELL}
        return [one for one in found if one.drawing.kind != CONTROL or one.drawing.strengths not in known]

    def _shared(self, drawing: Drawing) -> Drawn:
        """Drawn once, whatever number of processes ask for it."""
        with self.store.held(drawing):
            latents = self.store.get(drawing)
            return Drawn(drawing, latents) if latents is not None else self._kept(next(self.way()([drawing])))

    def _draw(self, cells: Sequence[Strengths]) -> list[Drawn]:
        """What a killed run drew and did not come to tell is taken from the store."""
        drawings = {strengths: self.ask.cell(strengths) for strengths in cells}
        found = {strengths: Drawn(drawing, self.store.get(drawing)) for strengths, drawing in drawings.items()}
        missing = [one.drawing for one in found.values() if one.latents is None]
        for drawn in self.way()(missing) if missing else ():
            found[drawn.drawing.strengths] = self._kept(drawn)
        return [found[strengths] for strengths in cells]

    def _kept(self, drawn: Drawn) -> Drawn:
        if drawn.latents is not None:
            self.store.put(drawn.drawing, drawn.latents)
        return drawn

    def _tell(self, claim: Claim, drawn: Drawn, worth: _Worth) -> None:
        if drawn.latents is None:
            self.trials.fail(claim, drawn.fault)
        else:
            self.trials.finish(claim, *worth(drawn))
        self.done(drawn)


@dataclass(frozen=True, slots=True)
class _Worth:
    """What Optuna is told: the mean of a cell's figures, each as a multiple of the control's.

    z-scores would need all the cells. Without a control the figures count as they are.
    """

    objective: Objective
    teacher: Samples
    units: Mapping[str, float]

    @classmethod
    def of(cls, objective: Objective, found: Sequence[Drawn]) -> _Worth:
        of_kind = {one.drawing.kind: samples(one) for one in found}
        teacher, control = of_kind[TEACHER], of_kind[CONTROL]
        if teacher is None:
            raise LcmMergeError("the teacher's images are NaN", "the style itself draws nothing: try --dtype fp32")
        return cls(objective, teacher, figures(objective, control, teacher) if control else {})

    def __call__(self, drawn: Drawn) -> tuple[float, dict[str, float]]:
        ours = samples(drawn)
        assert ours
        found = figures(self.objective, ours, self.teacher)
        ratios = [value / max(abs(self.units.get(name, 1.0)), 1e-12) for name, value in found.items()]
        return sum(ratios) / len(ratios), found


def samples(drawn: Drawn) -> Samples | None:
    """None where there are none."""
    if drawn.latents is None:
        return None
    return Samples(drawn.latents, tuple(job.prompt for job in drawn.drawing.jobs))


def figures(objective: Objective, ours: Samples, theirs: Samples) -> dict[str, float]:
    measured = objective.measure(ours, theirs)
    return {name: float(statistic(once(len(ours.latents)))) for name, statistic in measured.items()}

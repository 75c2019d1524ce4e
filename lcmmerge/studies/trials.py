"""The study as Optuna keeps it: a queue of cells that several processes share, and what came of each."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from lcmmerge.errors import LcmMergeError
from lcmmerge.studies.database import TABLES, Database
from lcmmerge.studies.order import Strengths

if TYPE_CHECKING:
    from optuna import Study, Trial
    from optuna.samplers import BaseSampler
    from optuna.trial import FrozenTrial

POLL = 0.5  # seconds
POPULATION = 8  # cells of one generation of NSGA-II: a search has dozens, not the thousands that its default is for
Bounds = Mapping[str, tuple[float, float]]  # term → the least and the largest λ


@dataclass(frozen=True, slots=True)
class Claim:
    """A cell that this process is to draw, as far as its ``rung`` goes."""

    strengths: Strengths
    rung: int
    trial: Trial


@dataclass(frozen=True, slots=True)
class Finished:
    """A cell that is done as far as its ``rung`` goes; ``fault``: why it has no samples.

    ``value``: how good it is, the more so the lower it is; infinite where there is a fault.
    """

    strengths: Strengths
    rung: int
    value: float
    fault: str


class Trials:
    """``inputs``: what every cell's samples and figures depend on. ``maximise``: for each value that is told of a cell.

    Raises LcmMergeError where the study was begun with other inputs, or the database cannot be used.
    """

    def __init__(
        self, database: Database, inputs: Mapping[str, Any], bounds: Bounds, maximise: Sequence[bool] = (False,)
    ) -> None:
        import optuna

        optuna.logging.set_verbosity(logging.ERROR)
        # Of a Ctrl-C within a query the pool would log a traceback, and then raise it, too.
        logging.getLogger("sqlalchemy").addHandler(logging.NullHandler())
        self._database, self._bounds = database, bounds
        with database.held(TABLES), database.faults():
            storage = optuna.storages.RDBStorage(database.url, engine_kwargs=database.options)
        with self._alone():
            self._study: Study = optuna.create_study(
                storage=storage,
                study_name=database.study,
                directions=["maximize" if each else "minimize" for each in maximise],
                load_if_exists=True,
            )
            self._check(inputs)
            self._study.sampler = _sampler(len(self._study.get_trials(deepcopy=False)), len(maximise))

    def queue(self, cells: Sequence[Strengths], sampled: int = 0, rung: int = 0) -> None:
        """Put what nobody did or does yet into the queue: ``cells`` in order, then ``sampled`` for Optuna to choose."""
        with self._alone():
            self._bury()
            trials = [trial for trial in self._study.get_trials(deepcopy=False) if _counts(trial)]
            known = {(tuple(trial.user_attrs.get("cell", ())), _rung(trial)) for trial in trials}
            for cell in cells:
                if (cell, rung) not in known:
                    self._enqueue({"cell": list(cell), "rung": rung})
            chosen = sum("sampled" in trial.user_attrs for trial in trials)
            for _ in range(sampled - chosen):
                self._enqueue({"sampled": True, "rung": rung})

    def claims(self, at_once: Callable[[], int]) -> Iterator[list[Claim]]:
        """What this process is to draw, until all cells are done, also those that other processes took.

        ``at_once``: how many it draws together; asked when there is something to draw.
        """
        while True:
            found = self._claim(at_once()) if self._any_waiting() else []
            if found:
                yield found
            elif not self._awaited():
                return
            else:
                time.sleep(POLL)

    def finish(self, claim: Claim, values: Sequence[float], figures: Mapping[str, Any]) -> None:
        """``figures``: what is to be seen of the cell; JSON-ready."""
        with self._telling():
            for name, figure in figures.items():
                claim.trial.set_user_attr(name, figure)
            self._study.tell(claim.trial, values, skip_if_finished=True)

    def fail(self, claim: Claim, fault: str) -> None:
        """The cell cannot be drawn, now or ever."""
        with self._telling():
            claim.trial.set_user_attr("fault", fault)
            self._give_up(claim.trial)

    def finished(self) -> list[Finished]:
        """Every cell and rung that is done, in the order of their trials, each once."""
        with self._database.faults():
            trials = [trial for trial in self._study.get_trials(deepcopy=False) if _counts(trial)]
            done = [trial for trial in trials if trial.state.is_finished()]
            found = {(self._strengths(trial), _rung(trial)): trial for trial in done}
            return [
                Finished(strengths, rung, self._value(trial), trial.user_attrs.get("fault", ""))
                for (strengths, rung), trial in found.items()
            ]

    def close(self) -> None:
        """What this process took and did not finish is to be drawn by another, or later.

        A trial that bears no name was taken here, too, by an interrupted claim: others' claims end before we are alone.
        """
        with suppress(LcmMergeError), self._alone():  # where the database is gone, others see that this one is too
            for trial in self._in_state("RUNNING"):
                if trial.user_attrs.get("worker") in (None, self._database.worker):
                    self._queue_again(trial)

    def _any_waiting(self) -> bool:
        with self._database.faults():
            return bool(self._in_state("WAITING"))

    def _claim(self, at_most: int) -> list[Claim]:
        """One process at a time: SQLite would give two of them the same trial."""
        found: list[Claim] = []
        with self._alone():
            while len(found) < at_most and self._in_state("WAITING"):
                trial = self._study.ask()
                trial.set_user_attr("worker", self._database.worker)
                if not trial.user_attrs.keys() & {"cell", "sampled"}:  # a process elsewhere took the last one
                    self._give_up(trial)
                    continue
                strengths = tuple(trial.suggest_float(name, *bounds) for name, bounds in self._bounds.items())
                found.append(Claim(strengths, trial.user_attrs.get("rung", 0), trial))
        return found

    def _awaited(self) -> bool:
        """Whether another process is still drawing; what a dead one took is queued again."""
        with self._alone():
            self._bury()
            return bool(self._in_state("RUNNING") or self._in_state("WAITING"))

    def _bury(self) -> None:
        """Queue again what processes took that are no more, also one that died before it said its name."""
        for trial in self._in_state("RUNNING"):
            worker = trial.user_attrs.get("worker")
            if worker is None or not self._database.lives(worker):
                self._queue_again(trial)

    def _queue_again(self, trial: FrozenTrial) -> None:
        """First queued, then given up: where this process dies between, the next to do so sees that it is queued."""
        kept = {key: value for key, value in trial.user_attrs.items() if key in ("cell", "sampled", "rung")}
        copied = {other.user_attrs.get("copy of") for other in self._study.get_trials(deepcopy=False)}
        if kept and trial.number not in copied:
            self._enqueue({**kept, "copy of": trial.number})
        self._give_up(trial.number)

    def _enqueue(self, attributes: dict[str, Any]) -> None:
        """``cell``: its λs; ``sampled``: Optuna chooses them."""
        named = dict(zip(self._bounds, attributes.get("cell", ()), strict=False))
        self._study.enqueue_trial(named, attributes)

    def _in_state(self, name: str) -> list[FrozenTrial]:
        from optuna.trial import TrialState

        return self._study.get_trials(deepcopy=False, states=(TrialState[name],))

    def _strengths(self, trial: FrozenTrial) -> Strengths:
        return tuple(trial.user_attrs.get("cell") or (trial.params[name] for name in self._bounds))

    def _value(self, trial: FrozenTrial) -> float:
        if not trial.values:
            return float("inf")
        sign = -1 if self._study.directions[0].name == "MAXIMIZE" else 1
        return sign * float(trial.values[0])

    def _give_up(self, trial: Trial | int) -> None:
        self._study.tell(trial, state=_failed(), skip_if_finished=True)

    def _check(self, inputs: Mapping[str, Any]) -> None:
        before = self._study.user_attrs.get("inputs")
        if before is None:
            self._study.set_user_attr("inputs", dict(inputs))
            return
        differ = sorted(key for key in before.keys() | inputs.keys() if before.get(key) != inputs.get(key))
        if differ:
            raise LcmMergeError(
                f"{self._study.study_name}: the study was begun with another {', another '.join(differ)}",
                "choose another folder with -o, or ask for the same",
                [f"{key}: {before.get(key)}, now {inputs.get(key)}" for key in differ],
            )

    @contextmanager
    def _alone(self) -> Iterator[None]:
        with self._database.held(f"study {self._database.study}"), self._database.faults():
            yield

    @contextmanager
    def _telling(self) -> Iterator[None]:
        """Of a cell that others took from this process, since it looked dead to them, nothing more is to be told."""
        from optuna.exceptions import UpdateFinishedTrialError

        with self._database.faults(), suppress(UpdateFinishedTrialError):
            yield


def _counts(trial: FrozenTrial) -> bool:
    """Done, or still to be done; not what was given up for another to do."""
    return trial.user_attrs.keys() & {"cell", "sampled"} != set() and (
        trial.state.name != "FAIL" or "fault" in trial.user_attrs
    )


def _rung(trial: FrozenTrial) -> int:
    return int(trial.user_attrs.get("rung", 0))


def _failed() -> Any:
    from optuna.trial import TrialState

    return TrialState.FAIL


def _sampler(seed: int, values: int) -> BaseSampler:
    """A Gaussian process where SciPy is there; NSGA-II for a front, where there are two ``values``.

    The seed differs when a study goes on, so that no draw comes again.
    """
    import warnings

    from optuna.exceptions import ExperimentalWarning
    from optuna.samplers import GPSampler, NSGAIISampler, TPESampler

    if values > 1:
        return NSGAIISampler(population_size=POPULATION, seed=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        return GPSampler(seed=seed) if find_spec("scipy") else TPESampler(seed=seed)

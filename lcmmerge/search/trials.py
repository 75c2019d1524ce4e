"""The study as Optuna keeps it: a queue of cells that several processes share, and what came of each."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from lcmmerge.errors import LcmMergeError
from lcmmerge.search.order import Strengths
from lcmmerge.search.store import Worker

if TYPE_CHECKING:
    from optuna import Study, Trial
    from optuna.samplers import BaseSampler
    from optuna.trial import FrozenTrial

PATIENCE = 60  # seconds in which a process says that it took a cell
POLL = 0.5  # seconds
Bounds = Mapping[str, tuple[float, float]]  # term → the least and the largest λ


@dataclass(frozen=True, slots=True)
class Claim:
    """A cell that this process is to draw."""

    strengths: Strengths
    trial: Trial


@dataclass(frozen=True, slots=True)
class Finished:
    """A cell that is done; ``fault``: why it has no samples."""

    strengths: Strengths
    fault: str


class Trials:
    """``url``: of any database that Optuna takes. ``inputs``: what every cell's samples and figures depend on.

    Raises LcmMergeError where the study was begun with other inputs, or the database cannot be used.
    """

    def __init__(
        self, work: Path, url: str, inputs: Mapping[str, Any], bounds: Bounds, *, maximise: bool = False
    ) -> None:
        import optuna

        optuna.logging.set_verbosity(logging.ERROR)
        self._url, self._bounds = url, bounds
        self._guard = FileLock(work / ".study.lock")
        wait = {"connect_args": {"timeout": 60}} if url.startswith("sqlite") else {}
        with self._guard, self._faults():
            self._study: Study = optuna.create_study(
                storage=optuna.storages.RDBStorage(url, engine_kwargs=wait),
                study_name=work.resolve().name,
                direction="maximize" if maximise else "minimize",
                load_if_exists=True,
            )
            self._check(inputs)
            self._study.sampler = _sampler(len(self._study.get_trials(deepcopy=False)))
            self._worker = Worker(work)

    def queue(self, cells: Sequence[Strengths], sampled: int = 0) -> None:
        """Put what nobody did or does yet into the queue: ``cells`` in order, then ``sampled`` for Optuna to choose."""
        with self._guard, self._faults():
            self._bury()
            trials = [trial for trial in self._study.get_trials(deepcopy=False) if _counts(trial)]
            known = {tuple(trial.user_attrs.get("cell", ())) for trial in trials}
            for cell in cells:
                if cell not in known:
                    self._enqueue({"cell": list(cell)})
            chosen = sum("sampled" in trial.user_attrs for trial in trials)
            for _ in range(sampled - chosen):
                self._enqueue({"sampled": True})

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

    def finish(self, claim: Claim, value: float, figures: Mapping[str, Any]) -> None:
        """``figures``: what is to be seen of the cell; JSON-ready."""
        with self._faults():
            for name, figure in figures.items():
                claim.trial.set_user_attr(name, figure)
            self._study.tell(claim.trial, value)

    def fail(self, claim: Claim, fault: str) -> None:
        """The cell cannot be drawn, now or ever."""
        with self._faults():
            claim.trial.set_user_attr("fault", fault)
            self._give_up(claim.trial)

    def finished(self) -> list[Finished]:
        """Every cell that is done, in the order of its trials, each once."""
        with self._faults():
            trials = [trial for trial in self._study.get_trials(deepcopy=False) if _counts(trial)]
        done = [trial for trial in trials if trial.state.is_finished()]
        found = {self._strengths(trial): trial.user_attrs.get("fault", "") for trial in done}
        return [Finished(strengths, fault) for strengths, fault in found.items()]

    def close(self) -> None:
        """What this process took and did not finish is to be drawn by another, or later."""
        try:
            with self._guard, self._faults():
                for trial in self._in_state("RUNNING"):
                    if trial.user_attrs.get("worker") == self._worker.name:
                        self._queue_again(trial)
        finally:
            self._worker.close()

    def _any_waiting(self) -> bool:
        with self._faults():
            return bool(self._in_state("WAITING"))

    def _claim(self, at_most: int) -> list[Claim]:
        """One process at a time: SQLite would give two of them the same trial."""
        found: list[Claim] = []
        with self._guard, self._faults():
            while len(found) < at_most and self._in_state("WAITING"):
                trial = self._study.ask()
                trial.set_user_attr("worker", self._worker.name)
                if not trial.user_attrs.keys() & {"cell", "sampled"}:  # a process elsewhere took the last one
                    self._give_up(trial)
                    continue
                strengths = tuple(trial.suggest_float(name, *bounds) for name, bounds in self._bounds.items())
                found.append(Claim(strengths, trial))
        return found

    def _awaited(self) -> bool:
        """Whether another process here is still drawing; what a dead one took is queued again."""
        with self._guard, self._faults():
            self._bury()
            known = self._worker.others()
            running = self._in_state("RUNNING")
            here = any(trial.user_attrs.get("worker") in known or _is_new(trial) for trial in running)
            return here or bool(self._in_state("WAITING"))

    def _bury(self) -> None:
        """Queue again what processes took that are no more."""
        dead = {name for name, lives in self._worker.others().items() if not lives}
        for trial in self._in_state("RUNNING"):
            worker = trial.user_attrs.get("worker")
            if worker in dead or (worker is None and not _is_new(trial)):
                self._queue_again(trial)
        for name in dead:
            self._worker.forget(name)

    def _queue_again(self, trial: FrozenTrial) -> None:
        self._study.tell(trial.number, state=_failed())
        kept: dict[str, Any] = {key: value for key, value in trial.user_attrs.items() if key in ("cell", "sampled")}
        if kept:
            self._enqueue(kept)

    def _enqueue(self, attributes: dict[str, Any]) -> None:
        """``cell``: its λs; ``sampled``: Optuna chooses them."""
        named = dict(zip(self._bounds, attributes.get("cell", ()), strict=False))
        self._study.enqueue_trial(named, attributes)

    def _in_state(self, name: str) -> list[FrozenTrial]:
        from optuna.trial import TrialState

        return self._study.get_trials(deepcopy=False, states=(TrialState[name],))

    def _strengths(self, trial: FrozenTrial) -> Strengths:
        return tuple(trial.user_attrs.get("cell") or (trial.params[name] for name in self._bounds))

    def _give_up(self, trial: Trial) -> None:
        self._study.tell(trial, state=_failed())

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
    def _faults(self) -> Iterator[None]:
        from optuna.exceptions import OptunaError
        from sqlalchemy.exc import SQLAlchemyError

        try:
            yield
        except (OptunaError, SQLAlchemyError, ImportError) as error:
            what = str(error.__cause__ or error).strip().splitlines()[0]
            cure = "check --storage; what is recorded is kept, and the same command goes on"
            raise LcmMergeError(f"the study's database {_harmless(self._url)}: {what}", cure) from None


def _counts(trial: FrozenTrial) -> bool:
    """Done, or still to be done; not what was given up for another to do."""
    return trial.user_attrs.keys() & {"cell", "sampled"} != set() and (
        trial.state.name != "FAIL" or "fault" in trial.user_attrs
    )


def _is_new(trial: FrozenTrial) -> bool:
    started = trial.datetime_start
    return started is not None and datetime.now() - started < timedelta(seconds=PATIENCE)


def _failed() -> Any:
    from optuna.trial import TrialState

    return TrialState.FAIL


def _sampler(seed: int) -> BaseSampler:
    """A Gaussian process where SciPy is there. The seed differs when a study goes on, so that no draw comes again."""
    import warnings

    from optuna.exceptions import ExperimentalWarning
    from optuna.samplers import GPSampler, TPESampler

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        return GPSampler(seed=seed) if find_spec("scipy") else TPESampler(seed=seed)


def _harmless(url: str) -> str:
    """Without its password."""
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2]}"

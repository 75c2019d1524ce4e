"""The study as Optuna keeps it: a queue of cells that several processes share, and what came of each.

Waiting trials are the queue: whoever asks is given one that nobody else is given. While a worker draws its heart beats;
a trial of a silent one fails, and its cell is queued again: at once where its process was of this machine and is gone.
Two processes may queue one cell at the same time: of such trials the one of the lowest number counts, and the others
end without being drawn.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from socket import gethostname
from typing import TYPE_CHECKING, Any

from lcmmerge.errors import LcmMergeError
from lcmmerge.search import database
from lcmmerge.search.database import Database
from lcmmerge.search.order import Cell

if TYPE_CHECKING:
    from optuna import Study, Trial
    from optuna.samplers import BaseSampler
    from optuna.trial import FrozenTrial

POLL = 0.5  # seconds
LONG = 4  # polls after which it is said that others are waited for
POPULATION = 8  # cells of one generation of NSGA-II: a search has dozens, not the thousands that its default is for
Bounds = Mapping[str, tuple[float, float]]  # of a cell's numbers → the least and the largest


@dataclass(frozen=True, slots=True)
class Wanted:
    """A cell as far as its ``rung`` goes; a number where Optuna is to choose it."""

    cell: Cell | int
    rung: int

    @classmethod
    def of(cls, trial: FrozenTrial | Trial) -> Wanted | None:
        """None of a trial that is none of ours, as where nothing waited."""
        attributes = trial.user_attrs
        cell = Cell(*map(tuple, attributes["cell"])) if "cell" in attributes else attributes.get("sampled")
        return None if cell is None else cls(cell, int(attributes["rung"]))

    def as_dict(self) -> dict[str, Any]:
        if isinstance(self.cell, int):
            return {"sampled": self.cell, "rung": self.rung}
        return {"cell": [self.cell.lambdas, self.cell.factors], "rung": self.rung}


@dataclass(frozen=True, slots=True)
class Claim:
    """A cell that this process is to draw, as far as its ``rung`` goes."""

    cell: Cell
    rung: int
    trial: Trial


@dataclass(frozen=True, slots=True)
class Finished:
    """A cell that is done as far as its ``rung`` goes; ``fault``: why it has no samples.

    ``value``: how good it is, the more so the lower it is; infinite where there is a fault.
    """

    cell: Cell
    rung: int
    value: float
    fault: str


class Trials:
    """A study's cells as Optuna's trials, shared by its workers.

    ``inputs``: what every cell's samples and figures depend on. ``maximise``: for each value that is told of a cell.

    ``factors``: how many of a cell's numbers, the last ones, are block factors. ``say``: what a person should know.
    Raises LcmMergeError where the study was begun with other inputs, or the database cannot be used.
    """

    def __init__(
        self, database: Database, inputs: Mapping[str, Any], bounds: Bounds, maximise: Sequence[bool] = (False,),
        factors: int = 0, say: Callable[[str], None] = lambda _: None,
    ) -> None:  # fmt: skip
        import optuna

        optuna.logging.set_verbosity(logging.ERROR)
        # Of a Ctrl-C within a query the pool would log a traceback, and then raise it, too.
        logging.getLogger("sqlalchemy").addHandler(logging.NullHandler())
        self._database, self._bounds, self._terms, self._say = database, bounds, len(bounds) - factors, say
        self._own: dict[int, Trial] = {}  # claimed, and not finished yet
        self._silent: dict[int, float] = {}  # trial that no worker signed → when it was first seen
        with database.faults():
            self._study: Study = optuna.create_study(
                storage=database.storage,
                study_name=database.study,
                directions=["maximize" if each else "minimize" for each in maximise],
                load_if_exists=True,
            )
            self._check(inputs)
            self._study.sampler = _sampler(len(self._study.get_trials(deepcopy=False)), len(maximise))
        self._over = threading.Event()
        self._heart = threading.Thread(target=self._beat, daemon=True)
        self._heart.start()

    def claims(self, wanted: Sequence[Wanted], at_once: Callable[[], int]) -> Iterator[list[Claim]]:
        """What this process is to draw, until all of ``wanted`` is done, and what other processes took.

        ``at_once``: how many it draws together; asked when there is something to draw.
        """
        polls = 0
        while waiting := self._awaited(wanted):
            found = self._claim(at_once()) if "WAITING" in waiting else []
            if found:
                yield found
                polls = 0
                continue
            polls += 1
            if polls == LONG:
                silence = f"a dead one's are given up after {database.GRACE} seconds of silence"
                self._say(f"Waiting for cells that other workers draw; {silence}.")
            time.sleep(POLL)

    def finish(self, claim: Claim, values: Sequence[float], figures: Mapping[str, Any]) -> None:
        """``figures``: what is to be seen of the cell; JSON-ready."""
        with self._telling(claim.trial):
            for name, figure in figures.items():
                claim.trial.set_user_attr(name, figure)
            self._study.tell(claim.trial, values, skip_if_finished=True)

    def fail(self, claim: Claim, fault: str) -> None:
        """The cell cannot be drawn, now or ever."""
        with self._telling(claim.trial):
            claim.trial.set_user_attr("fault", fault)
            self._give_up(claim.trial)

    def finished(self) -> list[Finished]:
        """Every cell and rung that is done, in the order of their trials, each once."""
        with self._database.faults():
            done = [trial for trial in self._alive() if trial.state.is_finished()]
            found = {(self._cell(trial), trial.user_attrs["rung"]): trial for trial in done}
            return [
                Finished(cell, rung, self._value(trial), trial.user_attrs.get("fault", ""))
                for (cell, rung), trial in found.items()
            ]

    def close(self) -> None:
        """What this process took and did not finish is to be drawn by another, or later."""
        self._over.set()
        self._heart.join()
        with suppress(LcmMergeError), self._database.faults():  # where the database is gone, silence says the same
            for trial in self._own.values():
                self._give_up(trial)

    def _beat(self) -> None:
        while not self._over.wait(database.HEARTBEAT):
            with suppress(Exception):  # who draws comes upon it, too
                for trial in list(self._own.values()):
                    self._database.storage.record_heartbeat(trial._trial_id)

    def _awaited(self, wanted: Sequence[Wanted]) -> set[str]:
        """States of the trials that are to end yet, when what is wanted and nobody did or does is queued."""
        import optuna

        with self._database.faults():
            optuna.storages.fail_stale_trials(self._study)
            self._bury()
            alive = self._alive()
            known = {Wanted.of(trial) for trial in alive}
            missing = [one for one in wanted if one not in known]
            for one in missing:
                named = {} if isinstance(one.cell, int) else dict(zip(self._bounds, one.cell.numbers, strict=True))
                self._study.enqueue_trial(named, one.as_dict())
            states = {trial.state.name for trial in alive if not trial.state.is_finished()}
            return states | ({"WAITING"} if missing else set())

    def _bury(self) -> None:
        """Give up trials of processes that are gone, and of workers that died before they signed the one they got."""
        others = {trial.number: trial.user_attrs.get("worker") for trial in self._alive()
                  if trial.state.name == "RUNNING" and trial.number not in self._own}  # fmt: skip
        now = time.monotonic()
        self._silent = {number: self._silent.get(number, now) for number, worker in others.items() if worker is None}
        for number, worker in others.items():
            if _is_gone(worker) if worker else now - self._silent.get(number, now) > database.GRACE:
                self._give_up(number)

    def _claim(self, at_most: int) -> list[Claim]:
        """Of the trials that wait, of which there is one. Raises LcmMergeError."""
        found: list[Claim] = []
        waiting = True
        with self._database.faults():
            while waiting and len(found) < at_most:
                trial = self._study.ask()
                self._own[trial.number] = trial
                self._database.storage.record_heartbeat(trial._trial_id)
                trial.set_user_attr("worker", f"{_machine() or gethostname()}:{os.getpid()}")
                wanted, alive = Wanted.of(trial), self._alive()
                waiting = any(other.state.name == "WAITING" for other in alive)
                before = {Wanted.of(other) for other in alive if other.number < trial.number}
                if wanted is None or wanted in before:  # another process took the last one; or queued it, too
                    self._give_up(self._own.pop(trial.number))
                    continue
                for name, bounds in self._bounds.items():
                    trial.suggest_float(name, *bounds)
                found.append(Claim(self._cell(trial), wanted.rung, trial))
        return found

    def _alive(self) -> list[FrozenTrial]:
        """Done, or still to be done; not what was given up for another to do."""
        trials = self._study.get_trials(deepcopy=False)
        return [trial for trial in trials if trial.state.name != "FAIL" or "fault" in trial.user_attrs]

    def _cell(self, trial: FrozenTrial | Trial) -> Cell:
        wanted = Wanted.of(trial)
        if wanted and isinstance(wanted.cell, Cell):
            return wanted.cell
        numbers = tuple(trial.params[name] for name in self._bounds)
        return Cell(numbers[: self._terms], numbers[self._terms :])

    def _value(self, trial: FrozenTrial) -> float:
        if not trial.values:
            return float("inf")
        sign = -1 if self._study.directions[0].name == "MAXIMIZE" else 1
        return sign * float(trial.values[0])

    def _give_up(self, trial: Trial | int) -> None:
        from optuna.trial import TrialState

        self._study.tell(trial, state=TrialState.FAIL, skip_if_finished=True)

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
    def _telling(self, trial: Trial) -> Iterator[None]:
        """Of a cell that others took from this process, since it looked dead to them, nothing more is to be told."""
        from optuna.exceptions import UpdateFinishedTrialError

        with self._database.faults(), suppress(UpdateFinishedTrialError):
            yield
        del self._own[trial.number]


@cache
def _machine() -> str:
    """In what a process's number is its own: one boot of a kernel, and one namespace; empty where that is not known."""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}-{Path('/proc/self/ns/pid').stat().st_ino}"
    return ""


def _is_gone(worker: object) -> bool:
    """Whether it was a process of this machine that is no more; False where that cannot be told."""
    machine, _, number = str(worker).rpartition(":")
    if not machine or machine != _machine():
        return False
    try:
        os.kill(int(number), 0)
    except ProcessLookupError:
        return True
    except (OSError, ValueError, OverflowError):  # somebody else's; no number
        return False
    return False


def _sampler(seed: int, values: int) -> BaseSampler:
    """A Gaussian process where SciPy is there; NSGA-II for a front, where there are two ``values``.

    The seed differs when a study goes on, so that no draw comes again.
    """
    from optuna.samplers import GPSampler, NSGAIISampler, TPESampler

    if values > 1:
        return NSGAIISampler(population_size=POPULATION, seed=seed)
    return GPSampler(seed=seed) if find_spec("scipy") else TPESampler(seed=seed)

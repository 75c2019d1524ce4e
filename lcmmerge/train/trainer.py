"""The loop: gradients, steps, checkpoints, the best one. accelerate does devices, precision and several processes.

Every random number is a function of (seed, step, process), and so is the order of the data: a resumed run repeats an
unbroken one, on the CPU bit for bit.
"""

from __future__ import annotations

import hashlib
import math
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator

from lcmmerge.errors import LcmMergeError, NumericError
from lcmmerge.train.batch import Batch
from lcmmerge.train.checkpoint import Best, Checkpoints, TrainingState
from lcmmerge.train.networks import Networks
from lcmmerge.train.objectives import TrainingObjective
from lcmmerge.train.settings import TrainingSettings

# (number of the first micro-batch, process, processes) → this process's micro-batches from there on, without end.
Feed = Callable[[int, int, int], Iterator[Batch]]


@dataclass(frozen=True, slots=True)
class Stepped:
    """One optimizer step: ``step`` from 1, the mean loss of its micro-batches, seconds of wall time."""

    step: int
    loss: float
    rate: float
    gradient_norm: float
    seconds: float


class Watch(Protocol):
    """Who looks on; called in the main process only."""

    def stepped(self, stepped: Stepped) -> None: ...

    def validated(self, step: int, score: float, best: Best) -> None: ...

    def saved(self, step: int) -> None: ...


@dataclass(frozen=True, slots=True)
class Trained:
    """After which step the networks that are left stand: the best one's where there is a validation."""

    step: int
    best: Best | None


@dataclass(slots=True)
class Trainer:
    """The training loop.

    ``validate``: a score of the networks, lower is better. ``folder`` holds the checkpoints.

    ``identity`` is what else the numbers depend on: a resumed run must have the same.
    """

    networks: Networks
    objective: TrainingObjective
    feed: Feed
    settings: TrainingSettings
    folder: Path
    watch: Watch
    identity: Mapping[str, Any]
    accelerator: Accelerator
    validate: Callable[[Networks], float] | None = None

    def train(self, *, resume: bool = False) -> Trained:
        """Leaves the best state in ``networks``.

        Raises NumericError where the loss is no number, LcmMergeError where memory runs out or a process is lost,
        KeyboardInterrupt after the step in hand is saved, and what ``Checkpoints`` does.
        """
        checkpoints = Checkpoints(self.folder, self.settings.keep)
        optimizer = self._prepare()
        first, best = self._resume(checkpoints, optimizer) if resume else (0, None)
        accumulate, accelerator = self.settings.accumulate, self.accelerator
        batches = self.feed(first * accumulate, accelerator.process_index, accelerator.num_processes)
        saved = first
        with _stoppable() as stopped:
            for step in range(first, self.settings.steps):
                with _told(accelerator, saved):
                    self._step(step, optimizer, batches)
                done = step + 1
                last = done == self.settings.steps or stopped()
                if self._is_due(done, self.settings.validate_every, last and not stopped()):
                    with _told(accelerator, saved):
                        best = self._validate(done, best)
                at_best = best is not None and best.step == done
                if self._is_due(done, self.settings.checkpoint_every, last) or at_best:
                    self._save(checkpoints, done, optimizer, best)
                    saved = done
                    with _told(accelerator, saved):
                        accelerator.wait_for_everyone()
                if stopped():
                    raise KeyboardInterrupt
        if best and best.step != self.settings.steps:
            self.networks.load_state(checkpoints.load(best.step).trained)
        return Trained(best.step if best else self.settings.steps, best)

    def _prepare(self) -> Any:
        """The optimizer, and the model as accelerate wraps both."""
        parameters = list(self.networks.trained().values())
        self.accelerator.gradient_accumulation_steps = self.settings.accumulate
        if self.settings.gradient_checkpointing:
            self.networks.model.enable_gradient_checkpointing()
        optimizer = self.settings.make_optimizer(parameters)
        self.networks.to(self.accelerator.device)
        self.networks.model.train()
        self.networks.forward, prepared = self.accelerator.prepare(self.networks.model, optimizer)
        return prepared

    def _step(self, step: int, optimizer: Any, batches: Iterator[Batch]) -> None:
        started, losses, norm = time.perf_counter(), [], 0.0
        for group in optimizer.param_groups:
            group["lr"] = self.settings.rate(step)
        for part in range(self.settings.accumulate):
            batch = next(batches).to(self.accelerator.device)
            with self.accelerator.accumulate(self.networks.forward):
                with self.accelerator.autocast():
                    loss = self.objective.loss(self.networks, batch, self._draw(step, part))
                losses.append(loss.item())
                if not math.isfinite(losses[-1]):
                    raise NumericError(f"step {step + 1}: the loss is {losses[-1]}", "")
                self.accelerator.backward(loss)
                if self.accelerator.sync_gradients:
                    parameters = self.networks.trained().values()
                    norm = float(self.accelerator.clip_grad_norm_(list(parameters), self.settings.max_grad_norm))
                    if not (math.isfinite(norm) or self.accelerator.scaler):  # a scaler leaves such steps out
                        raise NumericError(f"step {step + 1}: the gradient's norm is {norm}", "")
                optimizer.step()
                optimizer.zero_grad()
        self.networks.stepped()
        if self.accelerator.is_main_process:
            mean, seconds = sum(losses) / len(losses), time.perf_counter() - started
            self.watch.stepped(Stepped(step + 1, mean, self.settings.rate(step), norm, seconds))

    def _draw(self, step: int, part: int) -> torch.Generator:
        """The random numbers of one micro-batch of one process."""
        place = f"{self.settings.seed}/{step}/{part}/{self.accelerator.process_index}"
        seed = int.from_bytes(hashlib.sha256(place.encode()).digest()[:7], "big")
        return torch.Generator().manual_seed(seed)

    @staticmethod
    def _is_due(done: int, every: int, last: bool) -> bool:
        return every > 0 and (done % every == 0 or last)

    def _validate(self, done: int, best: Best | None) -> Best | None:
        if self.validate is None:
            return best
        self.networks.model.eval()
        with torch.no_grad(), self.accelerator.autocast():
            score = self.validate(self.networks)
        self.networks.model.train()
        if best is None or math.isnan(best.score) or score < best.score:
            best = Best(score, done)
        if self.accelerator.is_main_process:
            self.watch.validated(done, score, best)
        return best

    def _save(self, checkpoints: Checkpoints, done: int, optimizer: Any, best: Best | None) -> None:
        if self.accelerator.is_main_process:
            scaler = self.accelerator.scaler
            state = {"optimizer": optimizer.state_dict(), "scaler": scaler.state_dict() if scaler else {}}
            checkpoints.save(TrainingState(done, self.networks.state(), state, self._identity(), best))
            self.watch.saved(done)

    def _resume(self, checkpoints: Checkpoints, optimizer: Any) -> tuple[int, Best | None]:
        steps = checkpoints.steps()
        if not steps:
            return 0, None
        checkpoint = checkpoints.load(steps[-1], self._identity())
        with _told(self.accelerator, checkpoint.step), checkpoints.reading(checkpoint.step):
            self.networks.load_state(checkpoint.trained)
            optimizer.load_state_dict(checkpoint.optimizer["optimizer"])
            if self.accelerator.scaler and checkpoint.optimizer["scaler"]:
                self.accelerator.scaler.load_state_dict(checkpoint.optimizer["scaler"])
        return checkpoint.step, checkpoint.best

    def _identity(self) -> dict[str, Any]:
        processes = {"processes": self.accelerator.num_processes}
        return {**self.settings.identity(), **self.objective.as_dict(), **processes, **self.identity}


@contextmanager
def _stoppable() -> Iterator[Callable[[], bool]]:
    """The first Ctrl-C or SIGTERM lets the step in hand end, the second one ends the program."""
    asked = False

    def ask(number: int, frame: object) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _told(accelerator: Accelerator, saved: int) -> Iterator[None]:
    """What goes wrong in a step, with what is saved and what to do."""
    kept = f"step {saved} is saved" if saved else "nothing is saved yet"
    try:
        yield
    except NumericError as error:
        raise NumericError(
            error.message, f"{kept}; begin anew with a lower --learning-rate or --precision bf16"
        ) from None
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise LcmMergeError(f"out of memory: {_first_line(error)}", f"{kept}; {LESS_MEMORY}") from None
    except RuntimeError as error:
        if "alloc" in str(error):  # the CPU's
            raise LcmMergeError(f"out of memory: {_first_line(error)}", f"{kept}; {LESS_MEMORY}") from None
        if accelerator.num_processes > 1:
            cure = f"{kept}: go on from it with --resume" if saved else kept
            raise LcmMergeError(f"a process was lost: {_first_line(error)}", cure) from None
        raise


# The first of these a resumed run may take, the others change its numbers.
LESS_MEMORY = (
    "--resume with --gradient-checkpointing, or begin anew with a smaller --batch and more --accumulate, "
    "--precision bf16, --encode-only"
)


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]

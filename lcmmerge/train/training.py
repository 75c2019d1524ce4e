"""The parts of one training, put together: data and its held-out part, networks, validation, trainer, product."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from lcmmerge.accelerators import Sampling
from lcmmerge.errors import IncompatibleError
from lcmmerge.output import Output
from lcmmerge.train.base import Base
from lcmmerge.train.batch import Batch
from lcmmerge.train.card import TrainingOrigin
from lcmmerge.train.data import Data, Indexed, open_data
from lcmmerge.train.data.encoded import Encoded
from lcmmerge.train.data.loader import OnBad, batches
from lcmmerge.train.job import ENOUGH, HELD_OUT, LCD, TrainingJob
from lcmmerge.train.monitor import Blind, Monitor
from lcmmerge.train.networks import FullNetworks, LoraNetworks
from lcmmerge.train.objectives import TrainingObjective
from lcmmerge.train.product import write_full, write_lora
from lcmmerge.train.sampling import Sampler
from lcmmerge.train.trainer import Trainer
from lcmmerge.train.validate import Validation, validation, write_sheet


class Training:
    """A training that was put together: data, networks, objective.

    ``facts``: what tells the data and what is done with them, for checkpoints and the product.

    Raises what opening the data does, IncompatibleError where they were encoded by another model, LcmMergeError for a
    resolution that makes no sense.
    """

    def __init__(
        self, job: TrainingJob, base: Base, objective: TrainingObjective, accelerator: Accelerator, output: Output
    ) -> None:
        self.job, self.base, self.objective, self.accelerator, self.output = job, base, objective, accelerator, output
        self.transform = job.transform(base.unet.config.sample_size, base.pixels)
        data = open_data(job.data, job.options)
        if isinstance(data, Encoded) and data.settings.get("model") != base.encoders:
            cause = f"{job.data}: was encoded by another model's VAE or text encoders"
            raise IncompatibleError(cause, "encode the images again with --encode-only")
        self.facts: dict[str, Any] = {"data": identity_of(data), "caption": job.options.caption}
        self.facts |= {**asdict(self.transform), "drop_captions": job.drop_captions, "held_out": self._held_out(data)}
        self.data, self.held = data, None
        if self.facts["held_out"]:
            self.data, self.held = data.split(self.facts["held_out"], job.settings.seed)
        self.networks = self._networks()
        self.validation = self._validation()

    def monitor(self, first: int) -> Monitor | Blind:
        """Who looks on, from the step ``first`` on. It writes into the work folder, so only in one process."""
        if not self.accelerator.is_main_process:
            return Blind()
        sheet = partial(write_sheet, vae=self.base.vae, validation=self.validation) if self.validation else None
        return Monitor(self.job.folder, first, self.job.settings.steps, self.output, sheet)

    def trainer(self, monitor: Monitor | Blind) -> Trainer:
        identity = {"base": self.base.sha256, **self.facts, **self._student()}
        return Trainer(
            self.networks,
            self.objective,
            self._feed,
            self.job.settings,
            self.job.folder,
            monitor,
            identity,
            self.accelerator,
            self.validation,
        )

    @property
    def sampling(self) -> Sampling:
        """How to draw with the product."""
        guided = bool(self.networks.model.config.time_cond_proj_dim)
        return self.job.sampling(self.base.model, self._original_steps(), guided=guided)

    def write(self, step: int) -> None:
        """The product, of the state that the networks are in: that after ``step``. Raises what ``product`` does."""
        job, base, networks = self.job, self.base, self.networks
        facts = {
            "objective": self.objective.as_dict(),
            "settings": {**job.settings.identity(), "steps": job.settings.steps},
            "student": self._student(),
            "data": self.facts,
            "processes": self.accelerator.num_processes,
            "step": step,
        }
        origin = TrainingOrigin(job.command, base.model, base.repo, base.sha256, facts, self.sampling)
        if isinstance(networks, LoraNetworks):
            write_lora(job.target, networks, origin, dtype=job.dtype)
        else:
            write_full(job.target, networks, origin, base.configs, dtype=job.dtype)

    def _held_out(self, data: Data[Any]) -> int:
        if self.job.validate is not None:
            return self.job.validate
        return HELD_OUT if not isinstance(data, Indexed) or len(data) >= ENOUGH else 0

    def _networks(self) -> LoraNetworks | FullNetworks:
        job, base, objective = self.job, self.base, self.objective
        if not job.full:
            return LoraNetworks(base.unet, base.noise, job.rank, job.scale, job.settings.seed)
        mu = job.mu if objective.trails else None
        return FullNetworks(base.unet, base.noise, guided=job.kind == LCD, taught=objective.teaches, mu=mu)

    def _student(self) -> dict[str, Any]:
        job = self.job
        return {"full": True, "mu": job.mu} if job.full else {"rank": job.rank, "alpha": job.scale}

    def _feed(self, first: int, process: int, processes: int) -> Iterator[Batch]:
        place = {"start": first, "process": process, "processes": processes}
        size, drop = self.job.settings.batch_size, self.job.drop_captions
        return self._batches(self.data, size, drop_captions=drop, **place)

    def _batches(self, data: Data[Any], size: int, **where: Any) -> Iterator[Batch]:
        return batches(
            data,
            self.base.encoder,
            self.base.vae,
            seed=self.job.settings.seed,
            batch_size=size,
            transform=self.transform,
            workers=self.job.workers,
            on_bad=on_bad(self.job, self.output),
            **where,
        )

    def _validation(self) -> Validation | None:
        if self.held is None:
            return None
        job, count = self.job, self.facts["held_out"]
        size = min(count, job.settings.batch_size)
        found = islice(self._batches(self.held, size), -(-count // size))
        on_device = [batch.to(self.accelerator.device) for batch in found]
        guidance = job.guidance(self.base.model)
        sampler = Sampler(self.base.scheduler, guidance, job.settings.seed, self._original_steps())
        return validation(self.objective, on_device, sampler, full=job.full)

    def _original_steps(self) -> int:
        return self.base.noise.steps // self.job.skip


def on_bad(job: TrainingJob, output: Output) -> OnBad | None:
    return (lambda error: output.warn(f"{error.message}: left out")) if job.skip_bad else None


def identity_of(data: Data[Any]) -> dict[str, Any]:
    """What tells data from others without reading every image: the name and, where they are known, the captions."""
    named: dict[str, Any] = {"name": Path(data.name).name}
    if isinstance(data, Encoded):
        return named | {"examples": len(data), "encoded": dict(data.settings)}
    if not isinstance(data, Indexed):
        return named
    digest = hashlib.sha256()
    for example in data:
        digest.update(f"{Path(example.name).name}\n{example.caption}\n".encode())
    return named | {"examples": len(data), "captions_sha256": digest.hexdigest()}

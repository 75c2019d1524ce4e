"""What a search is asked for, and what follows from headers alone."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from itertools import product
from math import isfinite
from pathlib import Path
from typing import Any

import torch

from lcmmerge.accelerators import OFFICIAL
from lcmmerge.errors import LcmMergeError, NotFoundError
from lcmmerge.merge import provenance
from lcmmerge.merge.plan import Plan
from lcmmerge.merge.request import Request
from lcmmerge.merge.request import plan as plan_merge
from lcmmerge.sample.jobs import Size, jobs_of
from lcmmerge.sample.load import check_drawable, configs_of, native_size, pick_device
from lcmmerge.sample.presets import Preset, baseline, choose
from lcmmerge.search.objectives import Objective, objectives
from lcmmerge.search.order import Strengths
from lcmmerge.search.study import DPM, TEACHER_STEPS, Ask
from lcmmerge.tensors.digest import sha256_of

STYLE, ACCELERATOR = "style", "lcm"  # as merge.request names their terms
# Papercut over SDXL with the LCM-LoRA: https://huggingface.co/latent-consistency/lcm-lora-sdxl
PUBLISHED: Mapping[str, float] = {STYLE: 0.8, ACCELERATOR: 1.0}
# Where Optuna looks for a λ that has no axis.
BOX: Mapping[str, tuple[float, float]] = {STYLE: (0.4, 1.2), ACCELERATOR: (0.2, 1.2)}


@dataclass(frozen=True, slots=True)
class SearchRequest:
    """``merge``: its λs and its output do not count. ``axes``: term → the λs of a grid; a term without stays at 1.

    ``optimize``: how many cells Optuna chooses, between the least and the largest λ of each axis. ``seeds``: images
    per prompt. ``guidance``: of the teacher and of the baseline, None for what is usual for the model; the few steps
    have the accelerator's. ``storage``: a database's URL, None for SQLite in ``work``.
    """

    merge: Request
    work: Path
    prompts: tuple[str, ...]
    axes: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    optimize: int = 0
    steps: int | None = None
    guidance: float | None = None
    seeds: int = 2
    seed: int = 0
    size: Size | None = None
    batch: int = 8
    objective: str = "teacher"
    storage: str | None = None
    dtype: str | None = None
    device: str | None = None


@dataclass(frozen=True, slots=True)
class Prepared:
    """All that is known before a model is loaded. ``plan``: with every λ at 1.

    ``inputs``: what every sample and figure depends on, JSON-ready.
    """

    request: SearchRequest
    plan: Plan
    configs: Path
    preset: Preset
    objective: Objective
    device: torch.device
    dtype: torch.dtype
    size: Size
    guidance: float
    inputs: Mapping[str, Any]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(term.name for term in self.plan.terms)

    @property
    def published(self) -> Strengths:
        return tuple(PUBLISHED.get(name, 1.0) for name in self.names)

    @property
    def cells(self) -> list[Strengths]:
        """Of the grid; where there is none the published λ, for Optuna to begin with."""
        axes = self.request.axes
        return list(product(*(axes.get(name, (1.0,)) for name in self.names))) if axes else [self.published]

    @property
    def bounds(self) -> dict[str, tuple[float, float]]:
        """Term → the least and the largest λ that any cell has, the controls' 0 too."""
        found = {}
        for number, name in enumerate(self.names):
            values = [cell[number] for cell in self.ask(1).with_controls(self.cells)]
            if self.request.optimize and not self.request.axes:
                values += BOX.get(name, ())
            found[name] = min(values), max(values)
        return found

    @property
    def url(self) -> str:
        return self.request.storage or f"sqlite:///{self.request.work.resolve() / 'study.db'}"

    def ask(self, evaluations: int) -> Ask:
        """``evaluations``: of the U-Net per image, by the few-step preset."""
        request = self.request
        jobs = jobs_of(request.prompts, self.size, seed=request.seed, count=request.seeds)
        accelerator = self.names.index(ACCELERATOR)
        return Ask(tuple(jobs), self.preset, evaluations, len(self.names), accelerator, self.guidance)


def prepare(request: SearchRequest, warn: Callable[[str], None]) -> Prepared:
    """Plan the merge and choose how to draw; what is on the Hub is downloaded.

    Raises NotFoundError, FormatError, AlreadyFusedError, every IncompatibleError, LcmMergeError for what makes no
    sense.
    """
    known = objectives()
    if request.objective not in known:
        raise NotFoundError(f"{request.objective!r}: no such objective", f"there are {', '.join(known)}")
    adapters = tuple((reference, 1.0) for reference, _ in request.merge.adapters)
    plan, _ = plan_merge(replace(request.merge, strengths=(1.0, 1.0), adapters=adapters))
    check_drawable(plan.base)
    provenance.refuse_fused(plan)
    _check_axes(request, plan)
    for doubt in plan.doubts:
        warn(doubt)
    if plan.accelerator is None:
        warn(f"which accelerator {request.merge.lcm} is cannot be told: it is drawn as an LCM-LoRA; see --accelerator")
    configs = configs_of(plan.base, request.merge.config_from)
    preset = choose(plan.base, configs, accelerator=(plan.accelerator or OFFICIAL).name, steps=request.steps)
    guidance = baseline(DPM, plan.base).guidance if request.guidance is None else request.guidance
    device, dtype = pick_device(request.device, request.dtype)
    plan.fetch()
    size = request.size or native_size(configs)
    inputs = {
        **_hashes(plan),
        "block weights": {term.name: dict(term.weights.factors) for term in plan.terms},
        "prompts": f"{len(request.prompts)}, sha256 {hashlib.sha256(repr(request.prompts).encode()).hexdigest()}",
        "seeds": f"{request.seeds} from {request.seed}",
        "size": f"{size[0]}x{size[1]}",
        "sampling": preset.as_dict(),
        "guidance": guidance,
        "teacher": f"{DPM}, {TEACHER_STEPS} steps",
        "objective": request.objective,
        "dtype": str(dtype).removeprefix("torch."),
        "device": device.type,
    }
    return Prepared(request, plan, configs, preset, known[request.objective], device, dtype, size, guidance, inputs)


def _hashes(plan: Plan) -> dict[str, str]:
    """``base``, ``style``, ``style.base`` → sha256; files are read where it is not known."""
    found = {}
    for key, source in plan.sources.items():
        kind, _, rest = key.partition(".")
        number, _, of = rest.partition(".")
        name = kind if kind == "base" else ".".join(filter(None, (plan.terms[int(number)].name, of)))
        found[name] = sha256_of(source.files, known=source.sha256)
    return found


def _check_axes(request: SearchRequest, plan: Plan) -> None:
    names = [term.name for term in plan.terms]
    if strangers := [name for name in request.axes if name not in names]:
        raise LcmMergeError(f"--grid {strangers[0]}: no such term", f"the terms are {', '.join(names)}")
    if not (request.axes or request.optimize):
        raise LcmMergeError("there is nothing to search", "give a --grid, or --optimize N")
    if len(request.prompts) * request.seeds < 2:
        raise LcmMergeError("one image alone shows no spread", "give more prompts, or more --seeds")
    for name, values in request.axes.items():
        if not values or not all(map(isfinite, values)):
            raise LcmMergeError(f"--grid {name}: no finite λ", "write it as 0.2:1.2:0.2, or 0.5,1.0")
    if not any(request.axes.get(ACCELERATOR, (1.0,))):
        raise LcmMergeError(f"--grid {ACCELERATOR}: λ = 0 alone accelerates nothing", "add some such as 0.8,1.0")

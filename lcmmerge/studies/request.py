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
from lcmmerge.errors import LcmMergeError
from lcmmerge.merge import provenance
from lcmmerge.merge.plan import Plan
from lcmmerge.merge.request import Request
from lcmmerge.merge.request import plan as plan_merge
from lcmmerge.sample.drawable import check_drawable, configs_of, native_size
from lcmmerge.sample.jobs import Job, Size
from lcmmerge.sample.load import pick_device
from lcmmerge.sample.presets import Preset, baseline, choose
from lcmmerge.studies.blocks import BlockAxis, Factors, block_axes
from lcmmerge.studies.objectives import Objective, objective, objectives
from lcmmerge.studies.order import Strengths
from lcmmerge.studies.study import DPM, FEWEST, TEACHER_STEPS, Ask
from lcmmerge.studies.winner import merge_of
from lcmmerge.tensors.digest import sha256_of

STYLE, ACCELERATOR = "style", "lcm"  # as merge.request names their terms
# Papercut over SDXL with the LCM-LoRA: https://huggingface.co/latent-consistency/lcm-lora-sdxl
PUBLISHED: Mapping[str, float] = {STYLE: 0.8, ACCELERATOR: 1.0}
# Where Optuna looks for a λ that has no axis.
BOX: Mapping[str, tuple[float, float]] = {STYLE: (0.4, 1.2), ACCELERATOR: (0.2, 1.2)}


@dataclass(frozen=True, slots=True)
class SearchRequest:
    """``merge``: its λs and its output do not count. ``axes``: term → the λs of a grid; a term without stays at 1.

    ``optimize``: how many cells Optuna chooses, between the least and the largest λ of each axis; with ``front`` for
    the style too, not only for the objective. ``blocks``: term → blocks → factors on its λ there. ``halving``: the
    share of cells that are drawn further is 1 / ``halving``, again and again; 0 draws all whole. ``count``: images
    per prompt. ``guidance``: of the teacher and of the baseline, None for what is usual for the model; the few steps
    have the accelerator's. ``storage``: a database's URL, None for SQLite in ``work``. ``ray``: a cluster's
    address.
    """

    merge: Request
    work: Path
    prompts: tuple[str, ...]
    axes: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    optimize: int = 0
    steps: int | None = None
    guidance: float | None = None
    count: int = 2
    seed: int = 0
    size: Size | None = None
    batch: int = 8
    objective: str = "teacher"
    blocks: Mapping[str, Mapping[str, Factors]] = field(default_factory=dict)
    halving: int = 0
    front: bool = False
    storage: str | None = None
    ray: str | None = None
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
    blocks: tuple[BlockAxis, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """Of a cell's numbers: the terms, and the block factors, such as ``style@IN``."""
        return (*(term.name for term in self.plan.terms), *(axis.name for axis in self.blocks))

    @property
    def objectives(self) -> tuple[Objective, ...]:
        """By which Optuna chooses."""
        return (self.objective, objectives()["style"]) if self.request.front else (self.objective,)

    @property
    def published(self) -> Strengths:
        return tuple(PUBLISHED.get(name, 1.0) for name in self.names)

    @property
    def cells(self) -> list[Strengths]:
        """Of the grid; where there is none of λs the published ones, for Optuna to begin with."""
        axes = self.request.axes
        usual = PUBLISHED if not axes else {}
        lambdas = [axes.get(term.name, (usual.get(term.name, 1.0),)) for term in self.plan.terms]
        return list(product(*lambdas, *(axis.factors.values for axis in self.blocks)))

    @property
    def bounds(self) -> dict[str, tuple[float, float]]:
        """Name → the least and the largest number that any cell has, the controls' 0 too."""
        found = {}
        boxed = dict(BOX) if self.request.optimize and not self.request.axes else {}
        boxed |= {axis.name: (axis.factors.low, axis.factors.high) for axis in self.blocks}
        for number, name in enumerate(self.names):
            values = [cell[number] for cell in self.ask(1).with_controls(self.cells)]
            values += boxed.get(name, ())
            found[name] = min(values), max(values)
        return found

    def merge(self, strengths: Strengths) -> Request:
        """What is searched, at a cell."""
        return merge_of(self.request.merge, self.plan, strengths, self.blocks)

    @property
    def url(self) -> str:
        return self.request.storage or f"sqlite:///{self.request.work.resolve() / 'study.db'}"

    def ask(self, evaluations: int) -> Ask:
        """``evaluations``: of the U-Net per image, by the few-step preset."""
        request = self.request
        # A noise of its own for each image: the bootstrap takes them for independent.
        every = len(request.prompts)
        jobs = [
            Job(prompt, "", request.seed + number * every + place, *self.size)
            for place, prompt in enumerate(request.prompts)
            for number in range(request.count)
        ]
        accelerator = self.names.index(ACCELERATOR)
        blocks = tuple(axis.term for axis in self.blocks)
        terms = len(self.plan.terms)
        return Ask(tuple(jobs), self.preset, evaluations, terms, accelerator, self.guidance, blocks, request.halving)


def prepare(request: SearchRequest, warn: Callable[[str], None]) -> Prepared:
    """Plan the merge and choose how to draw; what is on the Hub is downloaded.

    Raises NotFoundError, FormatError, AlreadyFusedError, every IncompatibleError, LcmMergeError for what makes no
    sense.
    """
    goal = objective(request.objective)
    adapters = tuple((reference, 1.0) for reference, _ in request.merge.adapters)
    plan, _ = plan_merge(replace(request.merge, strengths=(1.0, 1.0), adapters=adapters))
    check_drawable(plan.base)
    provenance.refuse_fused(plan)
    _check_axes(request, plan)
    blocks = block_axes(request.blocks, plan)
    for doubt in plan.doubts:
        warn(doubt)
    if plan.accelerator is None:
        warn(f"which accelerator {request.merge.lcm} is cannot be told: it is drawn as an LCM-LoRA; see --accelerator")
    configs = configs_of(plan.base, request.merge.config_from)
    preset = choose(plan.base, configs, accelerator=(plan.accelerator or OFFICIAL).name, steps=request.steps)
    guidance = baseline(DPM, plan.base).guidance if request.guidance is None else request.guidance
    device, dtype = _device(request)
    plan.fetch()
    size = request.size or native_size(configs)
    inputs = {
        **_hashes(plan),
        "block weights": {term.name: dict(term.weights.factors) for term in plan.terms},
        "prompts": f"{len(request.prompts)}, sha256 {hashlib.sha256(repr(request.prompts).encode()).hexdigest()}",
        "count": request.count,
        "seed": request.seed,
        "size": f"{size[0]}x{size[1]}",
        "sampling": preset.as_dict(),
        "guidance": guidance,
        "teacher": f"{DPM}, {TEACHER_STEPS} steps",
        "objective": request.objective,
        **_choosing(request),
        "dtype": str(dtype).removeprefix("torch."),
        "device": device.type,
    }
    return Prepared(request, plan, configs, preset, goal, device, dtype, size, guidance, inputs, blocks)


def _choosing(request: SearchRequest) -> dict[str, Any]:
    """What a study that was begun otherwise cannot go on with, where it is asked for."""
    blocks = {name: list(spans) for name, spans in request.blocks.items()}
    found = {"searched blocks": blocks, "halving": request.halving, "front": request.front}
    return {name: value for name, value in found.items() if value}


def _device(request: SearchRequest) -> tuple[torch.device, torch.dtype]:
    """Of the cluster that cells are drawn on, where there is one."""
    if request.ray is None:
        return pick_device(request.device, request.dtype)
    from lcmmerge.studies import cluster

    return cluster.pick_device(request.device, request.dtype)


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
    if not (request.axes or request.optimize or any(map(_has_grid, request.blocks.values()))):
        raise LcmMergeError("there is nothing to search", "give a --grid, or --optimize N")
    if len(request.prompts) * request.count < 2:
        raise LcmMergeError("one image alone shows no spread", "give more prompts, or more --count")
    if request.front and not request.optimize:
        raise LcmMergeError("a front is for Optuna to seek", "give --optimize N with --front")
    if request.front and request.halving:
        raise LcmMergeError("halving knows one figure of a cell, and a front has two", "give --front or --halving")
    if request.halving and len(request.prompts) * request.count < FEWEST * request.halving:
        raise LcmMergeError(
            f"{len(request.prompts) * request.count} images of a cell are too few to halve",
            f"give more prompts, or more --count: {FEWEST * request.halving} images at least",
        )
    for name, values in request.axes.items():
        if not values or not all(map(isfinite, values)):
            raise LcmMergeError(f"--grid {name}: no finite λ", "write it as 0.2:1.2:0.2, or 0.5,1.0")
    if not any(request.axes.get(ACCELERATOR, (1.0,))):
        raise LcmMergeError(f"--grid {ACCELERATOR}: λ = 0 alone accelerates nothing", "add some such as 0.8,1.0")


def _has_grid(spans: Mapping[str, Factors]) -> bool:
    return any(factors.values != (1.0,) for factors in spans.values())

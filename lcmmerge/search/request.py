"""What a search is asked for, and what follows from headers alone."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import product
from math import prod
from pathlib import Path
from typing import Any

import torch

from lcmmerge.accelerators import OFFICIAL
from lcmmerge.draw.drawable import check_drawable, configs_of, native_size
from lcmmerge.draw.jobs import MOST_CELLS, Job, Size, check_amount
from lcmmerge.draw.load import pick_device
from lcmmerge.draw.presets import Preset, baseline, choose
from lcmmerge.errors import OptionError
from lcmmerge.extras import check_installed
from lcmmerge.merge import provenance
from lcmmerge.merge.plan import Plan
from lcmmerge.merge.plan import plan as plan_merge
from lcmmerge.merge.spec import Merge
from lcmmerge.search.blocks import BlockAxis, Factors, block_axes
from lcmmerge.search.objectives import Objective, is_program, objective, objectives
from lcmmerge.search.order import Cell
from lcmmerge.search.study import DPM, FEWEST, TEACHER_STEPS, Ask
from lcmmerge.tensors.digest import sha256_of
from lcmmerge.tensors.dtypes import LARGEST

DATABASE, LATENTS = "study.db", "latents"  # of a study's folder
# Papercut over SDXL with the LCM-LoRA: https://huggingface.co/latent-consistency/lcm-lora-sdxl
STYLE = 0.8
# Where Optuna looks for a λ that has no axis; for the accelerator's in its usual strengths.
STYLE_BOX, ACCELERATOR_BOX = (0.4, 1.2), (0.2, 1.2)


@dataclass(frozen=True, slots=True)
class SearchRequest:
    """What is to be searched, and how.

    ``merge``: its λs and its output do not count. ``axes``: term → the λs of a grid; a term without stays at 1, and the
    accelerator at its usual strength.

    ``optimize``: how many cells Optuna chooses, between the least and the largest λ of each axis; with ``front`` for
    the style too, not only for the objective. ``blocks``: term → blocks → factors on its λ there. ``halving``: the
    share of cells that are drawn further is 1 / ``halving``, again and again; 0 draws all whole. ``count``: images
    per prompt. ``guidance``: of the teacher and of the baseline, None for what is usual for the model; the few steps
    have the accelerator's. ``teacher_steps``: how many steps the teacher takes. ``storage``: a database's URL, None for
    SQLite in ``work``. ``ray``: a cluster's address. ``force``: replace files of the results' names that no search
    wrote.
    """

    merge: Merge
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
    teacher_steps: int = TEACHER_STEPS
    blocks: Mapping[str, Mapping[str, Factors]] = field(default_factory=dict)
    halving: int = 0
    front: bool = False
    storage: str | None = None
    ray: str | None = None
    dtype: str | None = None
    device: str | None = None
    force: bool = False


@dataclass(frozen=True, slots=True)
class PreparedSearch:
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
    def accelerator(self) -> int:
        """Which of the terms is the acceleration LoRA."""
        fast = self.request.merge.accelerated
        assert fast  # ``prepare`` refuses a merge without
        return self.names.index(fast.name)

    @property
    def style(self) -> int | None:
        """Which of the terms is the style: the first that does not accelerate."""
        return next((number for number in range(len(self.plan.terms)) if number != self.accelerator), None)

    @property
    def strength(self) -> float:
        """The accelerator's usual one."""
        return float(self.plan.accelerator.strength.default) if self.plan.accelerator else 1.0

    @property
    def published(self) -> Cell:
        usual = {self.accelerator: self.strength, self.style: STYLE}
        lambdas = tuple(usual.get(number, 1.0) for number in range(len(self.plan.terms)))
        return Cell(lambdas, (1.0,) * len(self.blocks))

    @property
    def cells(self) -> list[Cell]:
        """Of the grid; where there is none of λs the published ones, for Optuna to begin with."""
        axes = self.request.axes
        one = [self.strength if number == self.accelerator else 1.0 for number in range(len(self.plan.terms))]
        usual = one if axes else self.published.lambdas
        lambdas = [axes.get(term.name, (value,)) for term, value in zip(self.plan.terms, usual, strict=True)]
        factors = [axis.factors.values for axis in self.blocks]
        return [Cell(one, other) for one in product(*lambdas) for other in product(*factors)]

    @property
    def bounds(self) -> dict[str, tuple[float, float]]:
        """Name → the least and the largest number that any cell has, the controls' 0 too."""
        found = {}
        boxed = {}
        if self.request.optimize and not self.request.axes:
            low, high = ACCELERATOR_BOX
            boxed = {self.names[self.accelerator]: (low * self.strength, high * self.strength)}
            boxed |= {} if self.style is None else {self.names[self.style]: STYLE_BOX}
        boxed |= {axis.name: (axis.factors.low, axis.factors.high) for axis in self.blocks}
        for number, name in enumerate(self.names):
            values = [cell.numbers[number] for cell in self.ask(1).with_controls(self.cells)]
            values += boxed.get(name, ())
            found[name] = min(values), max(values)
        return found

    def merge(self, cell: Cell) -> Merge:
        """What is searched, at a cell's λs and block factors."""
        lambdas = {term.name: value for term, value in zip(self.plan.terms, cell.lambdas, strict=True)}
        factors = {term.name: dict(term.weights.factors) for term in self.plan.terms}
        for axis, value in zip(self.blocks, cell.factors, strict=True):
            factors[self.names[axis.term]][axis.span] = value
        searched = {self.names[axis.term] for axis in self.blocks}
        return self.request.merge.at(lambdas, {name: factors[name] for name in searched})

    @property
    def url(self) -> str:
        return self.request.storage or f"sqlite:///{self.request.work.resolve() / DATABASE}"

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
        blocks = tuple(axis.term for axis in self.blocks)
        return Ask(
            tuple(jobs), self.preset, evaluations, len(self.plan.terms), self.accelerator, self.guidance, blocks,
            request.halving, request.teacher_steps,
        )  # fmt: skip


def prepare(request: SearchRequest, warn: Callable[[str], None]) -> PreparedSearch:
    """Plan the merge and choose how to draw; what is on the Hub is downloaded.

    Raises NotFoundError, FormatError, AlreadyFusedError, every IncompatibleError, OptionError for what makes no
    sense.
    """
    goal = objective(request.objective)
    if goal.extra:
        check_installed(goal.extra)
    if is_program(goal.weights):
        warn(f"{goal.weights} is a TorchScript, a program that is run as it stands: take it only from whom you trust")
    if not request.merge.linear:
        cause = f"{request.merge.method_text} is not linear in λ, and a search draws every cell from one sum"
        raise OptionError(cause, "search with the method add; or fuse, and generate, at each λ")
    merge = request.merge.at({term.name: 1.0 for term in request.merge.terms})
    if (fast := merge.accelerated) is None:
        raise OptionError("no term is an acceleration LoRA", "say of one which it is, by its `accelerator`")
    plan = plan_merge(merge)
    check_drawable(plan.base)
    provenance.refuse_fused(plan)
    _check_axes(request, plan, fast.name)
    blocks = block_axes(request.blocks, plan)
    _check_cells(request, blocks)
    for doubt in plan.doubts:
        warn(doubt)
    if plan.accelerator is None:
        file = fast.source.reference if fast.source else fast.name
        warn(f"which accelerator {file} is cannot be told: it is drawn as an LCM-LoRA; see --accelerator")
    configs = configs_of(plan.base, request.merge.config_from)
    preset = choose(plan.base, configs, accelerator=(plan.accelerator or OFFICIAL).name, steps=request.steps)
    guidance = baseline(DPM, plan.base).guidance if request.guidance is None else request.guidance
    device, dtype = _device(request)
    plan.fetch()
    size = request.size or native_size(configs)
    check_amount(len(request.prompts) * request.count, size)
    inputs = {
        **_hashes(plan),
        "block weights": {term.name: dict(term.weights.factors) for term in plan.terms},
        "prompts": f"{len(request.prompts)}, sha256 {hashlib.sha256(repr(request.prompts).encode()).hexdigest()}",
        "count": request.count,
        "seed": request.seed,
        "size": f"{size[0]}x{size[1]}",
        "sampling": preset.as_dict(),
        "guidance": guidance,
        "teacher": f"{DPM}, {request.teacher_steps} steps",
        "objective": request.objective,
        **_choosing(request),
        "dtype": str(dtype).removeprefix("torch."),
        "device": device.type,
    }
    return PreparedSearch(request, plan, configs, preset, goal, device, dtype, size, guidance, inputs, blocks)


def _choosing(request: SearchRequest) -> dict[str, Any]:
    """What a study that was begun otherwise cannot go on with, where it is asked for."""
    blocks = {name: list(spans) for name, spans in request.blocks.items()}
    alphas = {term.name: term.alpha for term in request.merge.terms if term.alpha is not None}
    found = {"alpha": alphas, "searched blocks": blocks, "halving": request.halving, "front": request.front}
    return {name: value for name, value in found.items() if value}


def _device(request: SearchRequest) -> tuple[torch.device, torch.dtype]:
    """Of the cluster that cells are drawn on, where there is one."""
    if request.ray is None:
        return pick_device(request.device, request.dtype)
    from lcmmerge.search import cluster

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


def _check_axes(request: SearchRequest, plan: Plan, fast: str) -> None:
    names = [term.name for term in plan.terms]
    if strangers := [name for name in request.axes if name not in names]:
        raise OptionError(f"--grid {strangers[0]}: no such term", f"the terms are {', '.join(names)}")
    if not (request.axes or request.optimize or any(map(_has_grid, request.blocks.values()))):
        raise OptionError("there is nothing to search", "give a --grid, or --optimize N")
    if len(request.prompts) * request.count < 2:
        raise OptionError("one image alone shows no spread", "give more prompts, or more --count")
    if request.front and not request.optimize:
        raise OptionError("a front is for Optuna to seek", "give --optimize N with --front")
    if request.front and request.halving:
        raise OptionError("halving knows one figure of a cell, and a front has two", "give --front or --halving")
    if request.halving and len(request.prompts) * request.count < FEWEST * request.halving:
        raise OptionError(
            f"{len(request.prompts) * request.count} images of a cell are too few to halve",
            f"give more prompts, or more --count: {FEWEST * request.halving} images at least",
        )
    for name, values in request.axes.items():
        if not values or not all(abs(value) <= LARGEST for value in values):
            raise OptionError(f"--grid {name}: no finite λ", "write it as 0.2:1.2:0.2, or 0.5,1.0")
    if not any(request.axes.get(fast, (1.0,))):
        raise OptionError(f"--grid {fast}: λ = 0 alone accelerates nothing", "add some such as 0.8,1.0")


def _check_cells(request: SearchRequest, blocks: tuple[BlockAxis, ...]) -> None:
    """Before they are a list in memory."""
    axes = [*map(len, request.axes.values()), *(len(axis.factors.values) for axis in blocks)]
    if (cells := prod(axes) + request.optimize) > MOST_CELLS:
        raise OptionError(f"{cells} cells, of at most {MOST_CELLS}", "give --grid larger steps, or --optimize N")


def _has_grid(spans: Mapping[str, Factors]) -> bool:
    return any(factors.values != (1.0,) for factors in spans.values())

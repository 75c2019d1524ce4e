"""With which scheduler, how many steps and what guidance a model is drawn.

Few steps need a scheduler whose timesteps begin where the noise is whole: *trailing* spacing. With the leading spacing
of Stable Diffusion's own configs four steps begin near t = 751 (https://arxiv.org/abs/2305.08891, section 3.3).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lcmmerge import accelerators
from lcmmerge.accelerators import ACCELERATORS, OF_THE_MODEL, OFFICIAL, SCHEDULERS, TRAILING, Sampling, Span
from lcmmerge.archs import Model
from lcmmerge.archs.prediction import FLOW
from lcmmerge.errors import FormatError, IncompatibleError, LcmMergeError
from lcmmerge.history import RECIPE
from lcmmerge.merge.configs import CURE, scheduler_config
from lcmmerge.refs.weights import SCHEDULER, local_tree, read_json
from lcmmerge.tensors import TensorSource

if TYPE_CHECKING:
    from diffusers import SchedulerMixin

MANY_STEPS = 25
CFG = 7.5  # diffusers' default
W_EMBEDDED = 8.5  # a full LCM's guidance: https://arxiv.org/abs/2310.04378, w = 7.5
# What diffusers' pipelines mend in schedulers' configs of old.
MENDED = {"steps_offset": 1, "clip_sample": False}


def _baseline(scheduler: str, **settings: str) -> Sampling:
    return Sampling(scheduler, Span.only(MANY_STEPS), Span.only(CFG), TRAILING | settings)


BASELINES: Mapping[str, Sampling] = {
    "ddim": _baseline("DDIMScheduler"),
    "dpm-solver": _baseline("DPMSolverMultistepScheduler", algorithm_type="dpmsolver", final_sigmas_type="sigma_min"),
    "dpm-solver++": _baseline("DPMSolverMultistepScheduler", algorithm_type="dpmsolver++"),
    "unipc": _baseline("UniPCMultistepScheduler"),
    "euler": _baseline("EulerDiscreteScheduler"),
    "lcm": OFFICIAL.sampling,
}


@dataclass(frozen=True, slots=True)
class Preset:
    """How images are drawn: a scheduler, its steps, and guidance.

    ``guidance``: up to 1 it is off. ``settings`` go into the scheduler's config, ``arguments`` into the call.
    """

    name: str
    scheduler: str
    steps: int
    guidance: float
    settings: Mapping[str, Any] = field(default_factory=dict)
    arguments: Mapping[str, float] = field(default_factory=dict)

    def build(self, base: Mapping[str, Any]) -> SchedulerMixin:
        """The scheduler for a model whose own has the config ``base``.

        Raises LcmMergeError where it cannot take so many steps, FormatError where there is no such scheduler, or none
        of such a config.
        """
        of_the_model = {key: base[key] for key in OF_THE_MODEL if key in base}
        config = of_the_model | dict(SCHEDULERS.get(self.scheduler, {})) | dict(self.settings)
        kind = _scheduler_class(self.scheduler)
        known = kind._get_init_keys(kind)
        try:
            scheduler = kind.from_config({key: value for key, value in config.items() if key in known})
            most = scheduler.config.get("original_inference_steps", scheduler.config.num_train_timesteps)
            if is_possible := self.steps <= most:
                scheduler.set_timesteps(self.steps)
        except Exception:  # a scheduler computes with its config, and checks little of it
            raise FormatError(f"the scheduler's config makes no {self.scheduler}", CURE) from None
        if not is_possible:
            raise LcmMergeError(
                f"{self.steps} steps: {self.scheduler} takes at most {most}", "give fewer --steps, or a --scheduler"
            )
        return scheduler

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready, and enough to draw so again."""
        return {
            "name": self.name,
            "scheduler": self.scheduler,
            "settings": dict(self.settings),
            "steps": self.steps,
            "guidance": self.guidance,
            "arguments": dict(self.arguments),
        }

    def __str__(self) -> str:
        steps = "1 step" if self.steps == 1 else f"{self.steps} steps"
        guidance = f"guidance {self.guidance:g}" if self.guidance > 1 else "no guidance"
        return f"{self.name} ({self.scheduler}), {steps}, {guidance}"


def is_guided(guidance: float, unet: Any) -> bool:
    """Whether a step evaluates the U-Net twice; a full LCM is told the guidance instead (``timestep_cond``)."""
    return bool(guidance > 1 and unet.config.time_cond_proj_dim is None)


def evaluations(steps: int, guidance: float, unet: Any) -> int:
    """Evaluations of the U-Net per image, as they are compared in few-step sampling."""
    return steps * (2 if is_guided(guidance, unet) else 1)


def evaluations_of(preset: Preset, pipeline: Any) -> int:
    """The same for a preset; some schedulers (PNDM, Heun) evaluate more often than they step."""
    scheduler = preset.build(pipeline.scheduler.config)
    return evaluations(len(scheduler.timesteps), preset.guidance, pipeline.unet)


def choose(
    model: Model,
    configs: Path,
    *,
    accelerator: str | None = None,
    scheduler: str | None = None,
    steps: int | None = None,
    guidance: float | None = None,
) -> Preset:
    """The preset of a baseline ``scheduler``, else of an ``accelerator``, else the one that the model speaks for.

    A model's own is what its merge recorded, else its scheduler's. ``steps`` and ``guidance`` go before the preset's.
    Raises LcmMergeError for what makes no sense, IncompatibleError, FormatError for a damaged record.
    """
    config = dict(own_scheduler(configs, model).config)
    if scheduler:
        chosen = baseline(scheduler, model)
    elif accelerator:
        sampling = accelerators.accelerator(accelerator).sampling
        if (sampling.predicts == FLOW) != (model.prediction.kind == FLOW):
            raise IncompatibleError(
                f"{accelerator}: draws what predicts {sampling.predicts}; {model.source.path} {model.prediction}",
                f"`lcmmerge accelerators {model.arch.name}` lists those that do",
            )
        chosen = of_sampling(accelerator, sampling)
    else:
        chosen = recorded(model.source) or _own(config, model, configs)
    chosen = replace(
        chosen,
        steps=chosen.steps if steps is None else steps,
        guidance=chosen.guidance if guidance is None else guidance,
    )
    if chosen.steps < 1 or not (isfinite(chosen.guidance) and chosen.guidance >= 0):
        raise LcmMergeError(f"{chosen}: nothing can be drawn so", "give --steps 1 or more, and a finite --guidance")
    chosen.build(config)
    return chosen


def baseline(name: str, model: Model) -> Preset:
    """One of BASELINES, with as many steps and as much guidance as is usual for the model."""
    preset = of_sampling(name, BASELINES[name])
    return preset if BASELINES[name] is OFFICIAL.sampling else replace(preset, guidance=model.arch.family.guidance)


def of_sampling(name: str, sampling: Sampling) -> Preset:
    steps, guidance = int(sampling.steps.default), sampling.guidance.default
    return Preset(name, sampling.scheduler, steps, guidance, sampling.settings, sampling.arguments)


def recorded(source: TensorSource) -> Preset | None:
    """How ``fuse`` recorded that its result is drawn; None where it recorded nothing. Raises FormatError."""
    try:
        sampling = json.loads(source.metadata.get(RECIPE, "{}")).get("sampling")
        if sampling is None:
            return None
        steps, guidance = int(sampling["steps"]), float(sampling["guidance"])
        settings, arguments = dict(sampling["settings"]), dict(sampling["arguments"])
        return Preset("recorded", str(sampling["scheduler"]), steps, guidance, settings, arguments)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        raise FormatError(f"{source.path}: its merge recipe is damaged", "name a --scheduler") from None


def own_scheduler(configs: Path, model: Model | None = None) -> SchedulerMixin:
    """The scheduler of a pipeline's folder, for a ``model`` that is not the folder's own.

    Raises NotFoundError, FormatError, IncompatibleError.
    """
    config = scheduler_config(configs, model) if model else read_json(local_tree(configs), SCHEDULER)
    kind = _scheduler_class(str(config.get("_class_name")))
    try:
        return kind.from_config(config)
    except Exception:  # as above
        raise FormatError(f"{configs}/scheduler: no config of a {kind.__name__}", CURE) from None


def _scheduler_class(name: str) -> Any:
    """diffusers' class; the name comes from files."""
    import diffusers

    kind = getattr(diffusers, name, None) if name.endswith("Scheduler") else None
    if not (isinstance(kind, type) and issubclass(kind, diffusers.SchedulerMixin)):
        raise FormatError(f"{name!r}: diffusers has no such scheduler", "name another with --scheduler")
    return kind


def _own(config: dict[str, Any], model: Model, configs: Path) -> Preset:
    """A consistency model's scheduler says how it is drawn; any other is that of a many-step model."""
    scheduler = config["_class_name"]
    settings = {key: MENDED.get(key, value) for key, value in config.items() if not key.startswith("_")}
    for name in ("lcm", "tcd"):
        sampling = ACCELERATORS[name].sampling
        if scheduler == sampling.scheduler:
            embedded = read_json(local_tree(configs), "unet/config.json").get("time_cond_proj_dim")
            guidance = W_EMBEDDED if embedded else sampling.guidance.default
            return Preset("own", scheduler, int(sampling.steps.default), guidance, settings, sampling.arguments)
    return Preset("own", scheduler, MANY_STEPS, model.arch.family.guidance, settings)

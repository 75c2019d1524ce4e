"""What an entry says: which files an acceleration LoRA is, how to draw with it, and what its licence asks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from lcmmerge.archs.prediction import EPSILON, FLOW

# What a scheduler's config says of the model, not of the sampler: the noise it was trained on, and what it predicts.
OF_THE_MODEL = (
    "num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "prediction_type",
    "rescale_betas_zero_snr", "steps_offset",
)  # fmt: skip
# And of a model that predicts flow: how its noise is shifted to large images, which a LoRA may leave as it is.
OF_THE_FLOW: Mapping[str, tuple[str, ...]] = {
    "FlowMatchEulerDiscreteScheduler": (
        "num_train_timesteps", "shift", "use_dynamic_shifting", "base_shift", "max_shift", "base_image_seq_len",
        "max_image_seq_len", "time_shift_type", "shift_terminal",
    ),
    "FlowMatchHeunDiscreteScheduler": ("num_train_timesteps", "shift"),
}  # fmt: skip
# As in every Stable Diffusion's config; diffusers' own defaults are for models of pixels.
LATENT = {"clip_sample": False, "set_alpha_to_one": False}
SCHEDULERS: Mapping[str, Mapping[str, Any]] = {
    "DDIMScheduler": LATENT,
    "DPMSolverMultistepScheduler": {},
    "EulerDiscreteScheduler": {},
    "FlowMatchEulerDiscreteScheduler": {},
    "FlowMatchHeunDiscreteScheduler": {},
    "LCMScheduler": LATENT,
    "TCDScheduler": LATENT,
    "UniPCMultistepScheduler": {},
}
TRAILING = {"timestep_spacing": "trailing"}
NON_COMMERCIAL = "no commercial use"
NO_DERIVATIVES = "no commercial use, and no sharing of what is made of it"
COMFY = "https://github.com/Comfy-Org/workflow_templates"  # ComfyUI's own graphs, which have the numbers
File = str | Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Span:
    """A number to begin with, and the range that its authors give; as text ``4 (2–8)``."""

    default: float
    low: float
    high: float

    @classmethod
    def only(cls, value: float) -> Span:
        return cls(value, value, value)

    def __str__(self) -> str:
        return self.text()

    def text(self, unit: str = "") -> str:
        return f"{self.default:g}{unit}" + (f" ({self.low:g}–{self.high:g})" if self.low < self.high else "")

    def as_dict(self) -> dict[str, float]:
        return {"default": self.default, "low": self.low, "high": self.high}


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to draw: diffusers' scheduler, and ``num_inference_steps`` and ``guidance_scale`` of its pipelines.

    ``settings`` go into the scheduler's config, ``arguments`` into the pipeline's call, and ``sigmas`` too, where they
    are given one by one: no config holds them. ``embedded``: the guidance is told to the model (``guidance_scale`` of
    FLUX), and no step is evaluated twice. ``boundary``: of two experts, the share of the noise above which the first
    one draws. ``in_folders``: whether the pipelines of the base take the scheduler, so that their folders may name it.
    """

    scheduler: str
    steps: Span
    guidance: Span
    settings: Mapping[str, Any] = field(default_factory=dict)
    arguments: Mapping[str, float] = field(default_factory=dict)
    sigmas: tuple[float, ...] = ()
    embedded: bool = False
    boundary: float | None = None
    in_folders: bool = True

    @property
    def predicts(self) -> str:
        """What the models predict that it is for; samplers of ε take v, too."""
        flow = self.scheduler in OF_THE_FLOW or self.settings.get("prediction_type") == "flow_prediction"
        return FLOW if flow else EPSILON

    def config(self, base: Mapping[str, Any]) -> dict[str, Any]:
        """The scheduler's config for a model whose own scheduler has the config ``base``."""
        of_the_model = {key: base[key] for key in OF_THE_FLOW.get(self.scheduler, OF_THE_MODEL) if key in base}
        return {"_class_name": self.scheduler, **of_the_model, **SCHEDULERS[self.scheduler], **self.settings}

    def as_dict(self) -> dict[str, Any]:
        """What to draw with, JSON-ready; the ranges are left to the table."""
        return {
            "scheduler": self.scheduler,
            "settings": dict(self.settings),
            "steps": self.steps.default,
            "guidance": self.guidance.default,
            "arguments": dict(self.arguments),
            **({"sigmas": list(self.sigmas)} if self.sigmas else {}),
            **({"embedded": True} if self.embedded else {}),
            **({"boundary": self.boundary} if self.boundary else {}),
        }

    def facts(self) -> Iterator[tuple[str, str]]:
        """Name and value of all that a person sets beside the scheduler."""
        yield "steps", str(self.steps)
        yield "guidance", f"{self.guidance}{', embedded' if self.embedded else ''}"
        yield from ((key, f"{value:g}") for key, value in self.arguments.items())
        if self.sigmas:
            yield "sigmas", " ".join(f"{sigma:g}" for sigma in self.sigmas)
        if self.boundary:
            yield "boundary", f"{self.boundary:g}"

    def __str__(self) -> str:
        settings = ", ".join(f"{key} {value}" for key, value in self.settings.items())
        scheduler = f"{self.scheduler} ({settings})" if settings else self.scheduler
        steps = self.steps.text(" step" if self.steps.default == 1 else " steps")
        others = [f"{name} {value}" for name, value in self.facts() if name != "steps"]
        return ", ".join([scheduler, steps, *others])


def flow(
    steps: Span | float,
    guidance: Span | float = 1,
    *,
    shift: float | None = None,
    mu: float | None = None,
    sigmas: tuple[float, ...] = (),
    embedded: bool = False,
) -> Sampling:
    """Euler's steps through a flow, from noise: σ′ = s·σ / (1 + (s − 1)·σ), of the same ``shift`` s for every size.

    ``mu``: its logarithm, s = exp μ, where the base's pipeline computes one from the size: both ends of its range.
    ``sigmas``: as they are. None of them leaves the base's own shift.
    """
    settings: dict[str, Any] = {}
    if mu is not None:
        settings = {"use_dynamic_shifting": True, "base_shift": mu, "max_shift": mu, "time_shift_type": "exponential"}
    elif shift is not None or sigmas:
        settings = {"shift": 1.0 if shift is None else shift, "use_dynamic_shifting": False}
    settings |= {"shift_terminal": None} if settings else {}
    return Sampling(
        "FlowMatchEulerDiscreteScheduler", spanned(steps), spanned(guidance), settings, sigmas=sigmas,
        embedded=embedded,
    )  # fmt: skip


def spanned(value: Span | float) -> Span:
    return value if isinstance(value, Span) else Span.only(value)


@dataclass(frozen=True, slots=True)
class Accelerator:
    """An acceleration LoRA that people publish, by name.

    ``files``: architecture → reference, or a pair of them by the expert that each is for (``transformer``: of much
    noise, ``transformer_2``: of little). ``base``: the model of the architecture that it was made for, where only one
    is. ``strength``: the usual λ. ``licence``: as the model card says, None where it is silent; ``restriction``: what
    it forbids that others allow; ``duty``: what it, or the base's licence, asks of what is made.
    ``unverified``: facts of ours that the sources do not state.
    """

    name: str
    files: Mapping[str, File]
    sampling: Sampling
    sources: tuple[str, ...]
    licence: str | None = "openrail++"
    restriction: str = ""
    duty: str = ""
    remark: str = ""
    base: str = ""
    strength: Span = field(default_factory=lambda: Span.only(1))
    unverified: tuple[str, ...] = ()

    @property
    def references(self) -> Iterator[str]:
        """Every file, of pairs both."""
        for file in self.files.values():
            yield from (file,) if isinstance(file, str) else file.values()

    @property
    def facts(self) -> tuple[str, ...]:
        """What whoever uses or shares the result must heed."""
        return tuple(filter(None, (self.restriction, self.duty)))

    @property
    def obligations(self) -> str:
        """The same in a line; empty where there is nothing."""
        said = "; ".join(self.facts)
        return f"{self.name} is under {self.licence or 'a licence of its own'}: {said}" if said else ""

    def as_dict(self) -> dict[str, Any]:
        """The entry, JSON-ready."""
        ranges = {"steps": self.sampling.steps.as_dict(), "guidance": self.sampling.guidance.as_dict()}
        return {
            "name": self.name,
            "files": {arch: file if isinstance(file, str) else dict(file) for arch, file in self.files.items()},
            "base": self.base or None,
            "strength": self.strength.as_dict(),
            **self.sampling.as_dict(),
            **ranges,
            "licence": self.licence,
            "restriction": self.restriction or None,
            "duty": self.duty or None,
            "remark": self.remark or None,
            "sources": list(self.sources),
            "unverified": list(self.unverified),
        }

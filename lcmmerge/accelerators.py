"""The public acceleration LoRAs that obey θ′ = θ_pre + λ1·τ′ + λ2·τ_acc, as data, and how to draw with each.

Every fact is from the model card or the paper that the entry names as its ``sources``; one that they do not state is
named in ``unverified``. Not here: what is a dense delta (PeRFlow), or needs a scheduler that diffusers lacks (TDD).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

from lcmmerge.adapters import AdapterFile
from lcmmerge.archs import Architecture, Model, lora_targets
from lcmmerge.archs.names import squash
from lcmmerge.errors import NotFoundError
from lcmmerge.history import RECIPE, record_of

# What a scheduler's config says of the model, not of the sampler: the noise it was trained on, and what it predicts.
OF_THE_MODEL = (
    "num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "prediction_type",
    "rescale_betas_zero_snr", "steps_offset",
)  # fmt: skip
# As in every Stable Diffusion's config; diffusers' own defaults are for models of pixels.
LATENT = {"clip_sample": False, "set_alpha_to_one": False}
SCHEDULERS: Mapping[str, Mapping[str, Any]] = {
    "DDIMScheduler": LATENT,
    "EulerDiscreteScheduler": {},
    "LCMScheduler": LATENT,
    "TCDScheduler": LATENT,
}
TRAILING = {"timestep_spacing": "trailing"}
NON_COMMERCIAL = "no commercial use"
NO_DERIVATIVES = "no commercial use, and no sharing of what is made of it"


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

    ``settings`` go into the scheduler's config, ``arguments`` into the pipeline's call.
    """

    scheduler: str
    steps: Span
    guidance: Span
    settings: Mapping[str, Any] = field(default_factory=dict)
    arguments: Mapping[str, float] = field(default_factory=dict)

    def config(self, base: Mapping[str, Any]) -> dict[str, Any]:
        """The scheduler's config for a model whose own scheduler has the config ``base``."""
        of_the_model = {key: base[key] for key in OF_THE_MODEL if key in base}
        return {"_class_name": self.scheduler, **of_the_model, **SCHEDULERS[self.scheduler], **self.settings}

    def as_dict(self) -> dict[str, Any]:
        """What to draw with, JSON-ready; the ranges are left to the table."""
        return {
            "scheduler": self.scheduler,
            "settings": dict(self.settings),
            "steps": self.steps.default,
            "guidance": self.guidance.default,
            "arguments": dict(self.arguments),
        }

    def __str__(self) -> str:
        settings = ", ".join(f"{key} {value}" for key, value in self.settings.items())
        scheduler = f"{self.scheduler} ({settings})" if settings else self.scheduler
        steps = self.steps.text(" step" if self.steps.default == 1 else " steps")
        arguments = [f"{key} {value:g}" for key, value in self.arguments.items()]
        return ", ".join([scheduler, steps, f"guidance {self.guidance}", *arguments])


@dataclass(frozen=True, slots=True)
class Accelerator:
    """An acceleration LoRA that people publish, by name.

    ``files``: architecture → reference. ``licence``: as the model card says, None where it is silent;
    ``restriction``: what it forbids that others allow. ``unverified``: facts of ours that the sources do not state.
    """

    name: str
    files: Mapping[str, str]
    sampling: Sampling
    sources: tuple[str, ...]
    licence: str | None = "openrail++"
    restriction: str = ""
    remark: str = ""
    unverified: tuple[str, ...] = ()

    def file(self, arch: Architecture) -> str:
        """Raises NotFoundError where there is none for the architecture."""
        if arch.name not in self.files:
            others = names(arch)
            raise NotFoundError(
                f"{arch.title}: the accelerator {self.name} has no file for it, only for {', '.join(self.files)}",
                f"--lcm takes {'any of ' + ', '.join(others) + ', or ' if others else ''}a file",
            )
        return self.files[arch.name]

    def as_dict(self) -> dict[str, Any]:
        """The entry, JSON-ready."""
        ranges = {"steps": self.sampling.steps.as_dict(), "guidance": self.sampling.guidance.as_dict()}
        return {
            "name": self.name,
            "files": dict(self.files),
            **self.sampling.as_dict(),
            **ranges,
            "licence": self.licence,
            "restriction": self.restriction or None,
            "remark": self.remark or None,
            "sources": list(self.sources),
            "unverified": list(self.unverified),
        }


def _lcm() -> Accelerator:
    hub = "hf://latent-consistency/lcm-lora-{}/pytorch_lora_weights.safetensors"
    return Accelerator(
        "lcm",
        {
            "sd1": hub.format("sdv1-5"),
            "sdxl": hub.format("sdxl"),
            "ssd1b": hub.format("ssd-1b"),
            "segmind_vega": "hf://segmind/Segmind-VegaRT/pytorch_lora_weights.safetensors",
        },
        Sampling("LCMScheduler", Span(4, 2, 8), Span(1, 0, 2)),
        (
            "https://arxiv.org/abs/2311.05556",
            "https://huggingface.co/latent-consistency/lcm-lora-sdxl",
            "https://huggingface.co/segmind/Segmind-VegaRT",
        ),
        remark="its file for segmind_vega is Segmind-VegaRT, under apache-2.0",
    )


def _tcd() -> Accelerator:
    hub = "hf://h1t/TCD-{}-LoRA/pytorch_lora_weights.safetensors"
    return Accelerator(
        "tcd",
        {"sd1": hub.format("SD15"), "sd2": hub.format("SD21-base"), "sdxl": hub.format("SDXL")},
        Sampling("TCDScheduler", Span(4, 4, 50), Span.only(0), arguments={"eta": 0.3}),
        (
            "https://arxiv.org/abs/2402.19159",
            "https://huggingface.co/h1t/TCD-SDXL-LoRA",
            "https://huggingface.co/docs/diffusers/using-diffusers/inference_with_tcd_lora",
        ),
        "mit",
        remark="its file for sd2 was made for 2.1-base (512 px), not for the v-prediction models",
    )


def _hyper(steps: str, sampling: Sampling, *, cfg: bool = False) -> Accelerator:
    hub = f"hf://ByteDance/Hyper-SD/Hyper-{{}}-{steps}{'-CFG' if cfg else ''}-lora.safetensors"
    return Accelerator(
        f"hyper-{'cfg-' if cfg else ''}{steps}",
        {"sd1": hub.format("SD15"), "sdxl": hub.format("SDXL")},
        sampling,
        ("https://arxiv.org/abs/2404.13686", "https://huggingface.co/ByteDance/Hyper-SD"),
        unverified=("scheduler", "default guidance") if cfg else (),
    )


def _lightning(steps: int) -> Accelerator:
    return Accelerator(
        f"lightning-{steps}steps",
        {"sdxl": f"hf://ByteDance/SDXL-Lightning/sdxl_lightning_{steps}step_lora.safetensors"},
        Sampling("EulerDiscreteScheduler", Span.only(steps), Span.only(0), TRAILING),
        ("https://arxiv.org/abs/2402.13929", "https://huggingface.co/ByteDance/SDXL-Lightning"),
    )


def _pcm(name: str, file: str, sampling: Sampling) -> Accelerator:
    hub = f"hf://wangfuyun/PCM_Weights/{{0}}/pcm_{{0}}_{file}_converted.safetensors"
    return Accelerator(
        name,
        {"sd1": hub.format("sd15"), "sdxl": hub.format("sdxl")},
        sampling,
        (
            "https://arxiv.org/abs/2405.18407",
            "https://huggingface.co/wangfuyun/PCM_Weights",
            "https://huggingface.co/spaces/wangfuyun/Phased-Consistency-Model-PCM",
        ),
        licence=None,
    )


def _dmd2() -> Accelerator:
    # Trained at the timesteps 999, 749, 499 and 249, which LCMScheduler takes where it chooses among all 1000.
    return Accelerator(
        "dmd2",
        {"sdxl": "hf://tianweiy/DMD2/dmd2_sdxl_4step_lora_fp16.safetensors"},
        Sampling("LCMScheduler", Span.only(4), Span.only(0), {"original_inference_steps": 1000}),
        ("https://arxiv.org/abs/2405.14867", "https://huggingface.co/tianweiy/DMD2"),
        "cc-by-nc-4.0",
        NON_COMMERCIAL,
    )


def _flash(name: str, arch: str, steps: Span, licence: str, restriction: str) -> Accelerator:
    return Accelerator(
        name,
        {arch: f"hf://jasperai/{name}/pytorch_lora_weights.safetensors"},
        Sampling("LCMScheduler", steps, Span.only(0), TRAILING),
        ("https://arxiv.org/abs/2406.02347", f"https://huggingface.co/jasperai/{name}"),
        licence,
        restriction,
    )


def _yoso() -> Accelerator:
    return Accelerator(
        "yoso",
        {"sd1": "hf://Luo-Yihong/yoso_sd1.5_lora/yoso_lora.safetensors"},
        Sampling("LCMScheduler", Span(2, 1, 2), Span.only(1.5)),
        ("https://arxiv.org/abs/2403.12931", "https://huggingface.co/Luo-Yihong/yoso_sd1.5_lora"),
        licence=None,
    )


def _ddim(steps: int, guidance: Span) -> Sampling:
    return Sampling("DDIMScheduler", Span.only(steps), guidance, TRAILING)


def _tcd_trailing(steps: int, guidance: float) -> Sampling:
    return Sampling("TCDScheduler", Span.only(steps), Span.only(guidance), TRAILING)


ENTRIES = (
    _lcm(),
    _tcd(),
    _hyper("1step", Sampling("TCDScheduler", Span(1, 1, 8), Span.only(0), arguments={"eta": 1.0})),
    *(_hyper(f"{steps}steps", _ddim(steps, Span.only(0))) for steps in (2, 4, 8)),
    *(_hyper(f"{steps}steps", _ddim(steps, Span(5, 5, 8)), cfg=True) for steps in (8, 12)),
    *map(_lightning, (2, 4, 8)),
    *(_pcm(f"pcm-{steps}steps", f"smallcfg_{steps}step", _tcd_trailing(steps, 0)) for steps in (2, 4, 8, 16)),
    *(_pcm(f"pcm-cfg-{steps}steps", f"normalcfg_{steps}step", _tcd_trailing(steps, 7.5)) for steps in (4, 8, 16)),
    _pcm("pcm-lcm", "lcmlike_lora", Sampling("LCMScheduler", Span(4, 1, 20), Span.only(0))),
    _dmd2(),
    _flash("flash-sd", "sd1", Span(4, 2, 4), "cc-by-nc-4.0", NON_COMMERCIAL),
    _flash("flash-sdxl", "sdxl", Span.only(4), "cc-by-nc-nd-4.0", NO_DERIVATIVES),
    _yoso(),
)
ACCELERATORS: Mapping[str, Accelerator] = {entry.name: entry for entry in ENTRIES}
OFFICIAL = ACCELERATORS["lcm"]
COMMON = "pytorch_lora_weights.safetensors"  # diffusers' own name for a LoRA's file
NAME = re.compile(r"[\w-]+")  # what could be one's name


def names(arch: Architecture) -> tuple[str, ...]:
    """The accelerators that have a file for the architecture."""
    return tuple(entry.name for entry in ENTRIES if arch.name in entry.files)


def accelerator(name: str) -> Accelerator:
    """Raises NotFoundError for a name that is not in the table."""
    if name not in ACCELERATORS:
        near = get_close_matches(name, ACCELERATORS, n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else "`lcmmerge accelerators` lists them"
        raise NotFoundError(f"{name!r}: neither a file nor the name of an accelerator", hint)
    return ACCELERATORS[name]


def by_reference(reference: str) -> Accelerator | None:
    """The accelerator whose file this is."""
    return next((entry for entry in ENTRIES if reference in entry.files.values()), None)


def by_file(file: AdapterFile, base: Model) -> Accelerator | None:
    """The accelerator that an adapter's file is, where its name, its modules or its metadata leave no doubt.

    A name does where only one accelerator has such a file, or the folder around it is called as its repository. The
    official LCM-LoRAs are known by their modules, too: as PCM's have the same, only where no name speaks against it.
    """
    path = file.source.path
    if record_of(file.source, RECIPE).get("type") == "lcmmerge distill":
        return OFFICIAL
    alike = [(entry, url) for entry in ENTRIES for url in entry.files.values() if url.endswith(f"/{path.name}")]
    placed = [pair for pair in alike if pair[1].split("/")[-2].lower() == path.parent.name.lower()]
    if len(named := {entry.name for entry, _ in placed or alike}) == 1:
        return ACCELERATORS[named.pop()]
    name = path.name.lower()
    if name != COMMON and ("lcm" not in name or "pcm" in name):
        return None
    modules = {f"lora_unet_{squash(module.removeprefix('unet.'))}" for module in lora_targets(base.shapes)}
    downs = [patch.roles.get("down") for patch in file.patches]
    official = {patch.key for patch in file.patches} == modules and all(down and down.shape[0] == 64 for down in downs)
    return OFFICIAL if official and modules else None

"""Images as PNG files that say how they were drawn: to Stable Diffusion web UIs, and whole, as JSON, to programs.

``parameters``: https://github.com/AUTOMATIC1111/stable-diffusion-webui/blob/master/modules/infotext_utils.py reads it.
``lcmmerge``: one JSON object. No paths, no clock: the same image is the same file.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import diffusers
import torch
from PIL.PngImagePlugin import PngInfo

from lcmmerge.archs import Model
from lcmmerge.archs.modelspec import HASH
from lcmmerge.draw.draw import Drawn
from lcmmerge.draw.jobs import Job
from lcmmerge.draw.presets import Preset
from lcmmerge.errors import OutputError
from lcmmerge.history import canonical_json
from lcmmerge.merge.plan import Plan
from lcmmerge.refs import name_of
from lcmmerge.tensors.blockio import output_error
from lcmmerge.tensors.digest import sha256_of
from lcmmerge.tensors.staging import replace_with
from lcmmerge.version import __version__

# The web UI's names of diffusers' schedulers.
SAMPLERS = {
    "DDIMScheduler": "DDIM",
    "DPMSolverMultistepScheduler": "DPM++ 2M",
    "EulerAncestralDiscreteScheduler": "Euler a",
    "EulerDiscreteScheduler": "Euler",
    "HeunDiscreteScheduler": "Heun",
    "LMSDiscreteScheduler": "LMS",
    "PNDMScheduler": "PLMS",
    "UniPCMultistepScheduler": "UniPC",
}


@dataclass(frozen=True, slots=True)
class Origin:
    """What drew an image: JSON-ready facts of the ``model``, its ``dtype``, and the kind of ``device``."""

    model: Mapping[str, Any]
    dtype: str
    device: str

    @classmethod
    def of(cls, model: Model, plan: Plan | None, dtype: torch.dtype, device: torch.device) -> Origin:
        """``plan``: of what was merged on the fly, with its files on this disk."""
        facts = {
            "name": name_of(model.source.path),
            "architecture": model.arch.name,
            "variant": model.source.variant,
            "hash_sha256": model.source.metadata.get(HASH),
            "terms": [
                {
                    "term": term.name,
                    "name": name_of(term.path),
                    "sha256": sha256_of(plan.sources[f"terms.{index}"].files),
                    "lambda": term.strength,
                    "block_weights": dict(term.weights.factors),
                    **({"alpha": asked.alpha} if asked.alpha is not None else {}),
                }
                for index, (term, asked) in enumerate(zip(plan.terms, plan.merge.terms, strict=True))
            ]
            if plan
            else [],
        }
        return cls(facts, str(dtype).removeprefix("torch."), device.type)


def names_of(jobs: Sequence[Job]) -> list[str]:
    """``0000-<seed>.png``: the jobs' number comes first, so that a folder sorts as they were asked for."""
    return [f"{number:04}-{job.seed}.png" for number, job in enumerate(jobs)]


def check_folder(folder: Path, names: Iterable[str], *, force: bool) -> None:
    """What is wrong with writing images of these names there. Raises OutputError."""
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{folder}: is a file", "choose a folder with -o")
    there = folder if folder.exists() else folder.parent
    if not there.is_dir():
        raise OutputError(f"{there}: no such folder", "create it first, or choose another with -o")
    if not os.access(there, os.W_OK):
        raise OutputError(f"{there}: not writable", "choose a folder that you may write to with -o")
    taken = [] if force else [name for name in names if (folder / name).exists()]
    if taken:
        raise OutputError(
            f"{folder / taken[0]}: exists already", "choose another folder with -o, or replace it with --force"
        )


def manner(preset: Preset, origin: Origin) -> dict[str, Any]:
    """How images are drawn: all that they have in common."""
    return {
        "version": __version__,
        "model": dict(origin.model),
        **{"preset" if key == "name" else key: value for key, value in preset.as_dict().items()},
        "dtype": origin.dtype,
        "device": origin.device,
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
    }


def parameters(job: Job, preset: Preset, origin: Origin) -> str:
    """The web UIs' text. They have no guidance 0 in our sense: what is off is 1."""
    sampler = SAMPLERS.get(preset.scheduler, preset.scheduler.removesuffix("Scheduler"))
    facts = {
        "Steps": preset.steps,
        "Sampler": sampler,
        "CFG scale": f"{max(preset.guidance, 1):g}",
        "Seed": job.seed,
        "Size": f"{job.width}x{job.height}",
        "Model": Path(origin.model["name"]).stem,
        "Version": f"lcmmerge {__version__}",
    }
    lines = [job.prompt, *([f"Negative prompt: {job.negative}"] if job.negative else [])]
    return "\n".join([*lines, ", ".join(f"{key}: {_quoted(str(value))}" for key, value in facts.items())])


def _quoted(value: str) -> str:
    return json.dumps(value, ensure_ascii=False) if any(mark in value for mark in ',:\n"') else value


def save(drawn: Drawn, path: Path, preset: Preset, origin: Origin) -> None:
    """Write a PNG, all or nothing, into a folder that is made where there is none. Raises OutputError."""
    assert drawn.image
    texts = PngInfo()
    texts.add_text("parameters", parameters(drawn.job, preset, origin))
    texts.add_text("lcmmerge", canonical_json(asdict(drawn.job) | manner(preset, origin)))
    data = BytesIO()
    drawn.image.save(data, "png", pnginfo=texts)
    try:
        path.parent.mkdir(exist_ok=True)
    except OSError as error:
        raise output_error(path.parent, error) from None
    replace_with(path, data.getvalue())

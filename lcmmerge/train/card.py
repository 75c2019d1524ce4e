"""How a product of training came about, and its model card, in the Hub's format: https://huggingface.co/docs/hub/model-cards."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from lcmmerge import markdown, refs
from lcmmerge.accelerators import Sampling
from lcmmerge.archs import Model, modelspec
from lcmmerge.version import __version__

TAGS = {"lcd": ["lcm"], "lcf": ["lcm"], "diffusion": []}


@dataclass(frozen=True, slots=True)
class TrainingOrigin:
    """How a product came about. ``command``: that made it; ``repo``: the base's on the Hub, "" for a local one.

    ``facts``: the objective, the settings, the data and the step, JSON-ready, without paths or a clock.
    ``sampling``: how to draw with the product.
    """

    command: str
    base: Model
    repo: str
    base_sha256: str
    facts: Mapping[str, Any]
    sampling: Sampling

    def recipe(self) -> dict[str, Any]:
        named = {"name": refs.name_of(self.base.source.path), "sha256": self.base_sha256}
        named |= {"variant": self.base.source.variant} if self.base.source.variant else {}
        return {"type": self.command, "base": named, **self.facts}

    def metadata(self) -> dict[str, str]:
        """What the data tell: their size, and the caption that all images of a style have."""
        data = self.facts["data"]
        size, caption = data.get("resolution"), data.get("caption")
        styled = self.facts["objective"]["objective"] == "diffusion"
        return {
            **({modelspec.RESOLUTION: f"{size}x{size}"} if size else {}),
            **({modelspec.TRIGGER: caption} if caption and styled else {}),
        }


def card(origin: TrainingOrigin, name: str) -> str:
    """The same product has the same card. ``name``: of its file or folder."""
    title = f"# {markdown.text(name.removesuffix('.safetensors'))}\n"
    return "\n".join([markdown.front(_front(origin, name)), title, *_body(origin, name)])


def is_lora(name: str) -> bool:
    return name.endswith(".safetensors")


def _front(origin: TrainingOrigin, name: str) -> dict[str, Any]:
    """``base_model`` is a repository of the Hub, so a local file cannot stand there."""
    tags = [*TAGS[origin.facts["objective"]["objective"]], *(["lora"] if is_lora(name) else [])]
    relation = "adapter" if is_lora(name) else "finetune"
    models = {"base_model": origin.repo, "base_model_relation": relation} if origin.repo else {}
    return {
        **models,
        "library_name": "diffusers",
        "pipeline_tag": "text-to-image",
        "tags": [*tags, "lcmmerge", "text-to-image"],
    }


def _body(origin: TrainingOrigin, name: str) -> Iterator[str]:
    base = refs.name_of(origin.base.source.path)
    what = f"A LoRA for {base}" if is_lora(name) else f"A whole pipeline, tuned from {base}"
    yield f"{markdown.text(what)} ({origin.base.arch.title}), made by {markdown.code(origin.command)} {__version__}.\n"
    yield "## Drawing\n"
    yield "\n".join(_drawing(origin)) + "\n"
    yield f"```python\n{_code(origin, name)}\n```\n"
    if is_lora(name) and origin.sampling.scheduler == "LCMScheduler":
        command = shlex.join(["lcmmerge", "fuse", base, "STYLE", "--accelerator", name])
        yield f"Into a checkpoint with a style: {markdown.code(command)}\n"
    yield "## Making\n"
    yield f"{markdown.fenced(origin.recipe())}\n"


def _drawing(origin: TrainingOrigin) -> Iterator[str]:
    sampling = origin.sampling
    yield f"- scheduler: {sampling.scheduler}"
    yield from (f"  - {key}: {value}" for key, value in sampling.settings.items())
    yield f"- steps: {sampling.steps}"
    yield f"- guidance: {sampling.guidance}"


def _code(origin: TrainingOrigin, name: str) -> str:
    sampling = origin.sampling
    settings = "".join(f", {key}={value!r}" for key, value in sampling.settings.items())
    scheduler = f"pipeline.scheduler = {sampling.scheduler}.from_config(pipeline.scheduler.config{settings})"
    lora = [f"pipeline.load_lora_weights({_quoted(name)})"] if is_lora(name) else []
    steps, guidance = f"{sampling.steps.default:g}", f"{sampling.guidance.default:g}"
    return "\n".join(
        [
            f"from diffusers import DiffusionPipeline, {sampling.scheduler}\n",
            f"pipeline = DiffusionPipeline.from_pretrained({_quoted((origin.repo or 'BASE') if lora else name)})",
            *lora,
            *([scheduler] if lora else []),
            f'image = pipeline("PROMPT", num_inference_steps={steps}, guidance_scale={guidance}).images[0]',
        ]
    )


def _quoted(name: str) -> str:
    """A string of Python that ends no block of code."""
    return json.dumps(name).replace("`", r"\x60")

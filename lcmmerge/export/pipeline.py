"""Text → loop → decode over an export's sessions, with diffusers' schedulers: as much of a pipeline as drawing needs.

``draw.draw`` and ``draw.encode`` draw with it as with diffusers' own pipelines, whose order of steps it keeps
(https://github.com/huggingface/diffusers: pipelines/stable_diffusion, pipelines/stable_diffusion_xl).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from diffusers import SchedulerMixin
from diffusers.image_processor import VaeImageProcessor
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from lcmmerge.archs import Model
from lcmmerge.draw.load import clip_tokenizer, open_model
from lcmmerge.draw.png import Origin
from lcmmerge.draw.presets import is_guided, own_scheduler
from lcmmerge.draw.sampling import guidance_embedding, guided, loop, token_ids
from lcmmerge.export.manifest import read_manifest
from lcmmerge.export.runtime import TORCH, Runtime, open_export
from lcmmerge.history import RECIPE
from lcmmerge.refs.weights import MODEL_INDEX, local_tree, read_json

AfterStep = Callable[[Any, int, Tensor, dict[str, Tensor]], dict[str, Tensor]]
VAE_DEFAULTS = {"scaling_factor": 0.18215, "latents_mean": None, "latents_std": None}


def model_of(folder: Path) -> Model:
    """The weights by their headers, with the record that the manifest keeps. Raises NotFoundError, FormatError."""
    model, manifest = open_model(str(folder)), read_manifest(folder)
    recipe = json.dumps({**manifest.recipe, "sampling": dict(manifest.sampling)})
    return replace(model, source=replace(model.source, metadata={RECIPE: recipe}))


def open_pipeline(
    folder: Path, provider: str | None = None, say: Callable[[str], None] = lambda text: None
) -> OnnxPipeline:
    """Raises as ``open_export`` does."""
    return OnnxPipeline(open_export(folder, provider, say=say))


def origin_of(model: Model, runtime: Runtime) -> Origin:
    """With the runtime, the U-Net's variant, and the weights' sha256 as the manifest has it."""
    origin = Origin.of(model, None, runtime.dtypes["unet"], runtime.device)
    weights = runtime.manifest.files[runtime.manifest.components["unet"]["weights"]]["sha256"]
    facts = {"provider": runtime.provider, "graph": runtime.variants["unet"], "unet_sha256": weights}
    if runtime.provider != TORCH:
        from onnxruntime import __version__

        facts["onnxruntime"] = __version__
    return replace(origin, model={**origin.model, **facts})


@dataclass(frozen=True, slots=True)
class ModuleStandIn:
    """What drawing asks of a pipeline's module."""

    config: SimpleNamespace
    dtype: torch.dtype

    def to(self, dtype: torch.dtype) -> None:
        """A graph stays in its dtype; diffusers' SDXL changes its VAE's, and may leave it changed."""


class OnnxPipeline:
    """Text to image with Stable Diffusion 1 and 2, SDXL and its relatives, and full LCMs. Raises NotFoundError."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime, self.device = runtime, runtime.device
        self._tree = local_tree(runtime.folder)
        self.config = SimpleNamespace(**{"force_zeros_for_empty_prompt": True} | read_json(self._tree, MODEL_INDEX))
        self.unet = self._part("unet", "unet", {"time_cond_proj_dim": None})
        self.vae = self._part("vae", "vae_decoder", VAE_DEFAULTS)
        self.scheduler: SchedulerMixin = own_scheduler(runtime.folder)
        self.encoders = tuple(sorted(name for name in runtime.sessions if name.startswith("text_encoder")))
        folders = [runtime.folder / name.replace("text_encoder", "tokenizer") for name in self.encoders]
        self.tokenizers = tuple(clip_tokenizer(folder, "export the model again") for folder in folders)
        self.tokenizer = self.tokenizers[0]
        self.image_processor = VaeImageProcessor()
        self.is_xl = getattr(self.unet.config, "addition_embed_type", None) == "text_time"

    def _part(self, name: str, component: str, defaults: Mapping[str, Any]) -> ModuleStandIn:
        config = dict(defaults) | read_json(self._tree, f"{name}/config.json")
        return ModuleStandIn(SimpleNamespace(**config), self.runtime.dtypes[component])

    def encode_prompt(self, prompt: str, **unused: Any) -> tuple[Tensor | None, ...]:
        """hidden [1, tokens, width] and None; of SDXL also pooled [1, width] and None. Of one text, without guidance.

        SDXL is given the last hidden states but one, of its encoders side by side, and the second one's projection.
        """
        outputs = [
            self.runtime(encoder, {"input_ids": token_ids(tokenizer, prompt)})
            for encoder, tokenizer in zip(self.encoders, self.tokenizers, strict=True)
        ]
        dtype = self.unet.dtype
        if not self.is_xl:
            return outputs[0]["last_hidden_state"].to(dtype), None
        hidden = [found[f"hidden_states.{_layers(found) - 1}"] for found in outputs]
        return torch.cat(hidden, -1).to(dtype), None, outputs[-1]["text_embeds"].to(dtype), None

    @torch.no_grad()
    def __call__(
        self,
        prompt_embeds: Tensor,
        width: int,
        height: int,
        num_inference_steps: int,
        guidance_scale: float,
        generator: Sequence[torch.Generator],
        output_type: str,
        callback_on_step_end: AfterStep,
        negative_prompt_embeds: Tensor | None = None,
        pooled_prompt_embeds: Tensor | None = None,
        negative_pooled_prompt_embeds: Tensor | None = None,
        eta: float = 0.0,
        **unused: Any,
    ) -> SimpleNamespace:
        """``images``: float32 [images, height, width, 3] in 0 … 1; latents where the ``output_type`` is ``latent``.

        One generator an image; ``callback_on_step_end`` is given the latents after each step.
        """
        is_double = is_guided(guidance_scale, self.unet)
        text = {"encoder_hidden_states": _both(negative_prompt_embeds, prompt_embeds, is_double)}
        if self.is_xl:
            text["text_embeds"] = _both(negative_pooled_prompt_embeds, pooled_prompt_embeds, is_double)
            sizes = torch.tensor([[height, width, 0, 0, height, width]], dtype=self.unet.dtype)
            text["time_ids"] = sizes.expand(len(text["text_embeds"]), -1)
        if dim := self.unet.config.time_cond_proj_dim:
            scales = torch.full((len(prompt_embeds),), guidance_scale - 1)
            text["timestep_cond"] = guidance_embedding(scales, dim)
        self.scheduler.set_timesteps(num_inference_steps, device=self.device)
        latents = self._noise(generator, height, width)
        latents = loop(
            self.scheduler,
            latents,
            lambda sample, timestep: self._predict(sample, timestep, text, guidance_scale if is_double else 1.0),
            {"eta": eta, "generator": list(generator)},
            lambda number, timestep, latents: callback_on_step_end(self, number, timestep, {"latents": latents}),
        )
        return SimpleNamespace(images=latents if output_type == "latent" else self._decode(latents))

    def _noise(self, generators: Sequence[torch.Generator], height: int, width: int) -> Tensor:
        pixels = 2 ** (len(self.vae.config.block_out_channels) - 1)  # per latent
        shape = (len(generators), self.unet.config.in_channels, height // pixels, width // pixels)
        noise = randn_tensor(shape, list(generators), self.device, self.unet.dtype)
        latents: Tensor = noise * self.scheduler.init_noise_sigma
        return latents

    def _predict(self, sample: Tensor, timestep: Tensor, text: Mapping[str, Tensor], guidance: float) -> Tensor:
        """Guided where the guidance is not 1."""
        sample = torch.cat([sample, sample]) if guidance != 1 else sample
        noise = self.runtime("unet", {"sample": sample, "timestep": timestep.to(torch.int64), **text})["out_sample"]
        if guidance == 1:
            return noise
        empty, prompted = noise.chunk(2)
        return guided(empty, prompted, guidance)

    def _decode(self, latents: Tensor) -> np.ndarray[Any, Any]:
        config = self.vae.config
        if config.latents_mean and config.latents_std:
            mean, std = (_by_channel(values, latents) for values in (config.latents_mean, config.latents_std))
            latents = latents * std / config.scaling_factor + mean
        else:
            latents = latents / config.scaling_factor
        sample = self.runtime("vae_decoder", {"latent_sample": latents})["sample"]
        pixels = (sample / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)
        return pixels.float().cpu().numpy()


def _by_channel(values: Sequence[float], like: Tensor) -> Tensor:
    return torch.tensor(values).view(1, -1, 1, 1).to(like)


def _both(negative: Tensor | None, positive: Tensor | None, guided: bool) -> Tensor:
    assert positive is not None
    if not guided:
        return positive
    assert negative is not None
    return torch.cat([negative, positive])


def _layers(outputs: Mapping[str, Tensor]) -> int:
    return sum(name.startswith("hidden_states.") for name in outputs) - 1

"""The base of a training, in memory: what encodes, what is trained, the noise, and what tells that it is the same."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel

from lcmmerge import refs
from lcmmerge.accelerators import OFFICIAL
from lcmmerge.archs import Model
from lcmmerge.bake.tensors import stored
from lcmmerge.draw.drawable import configs_of
from lcmmerge.draw.load import assembled, load_components
from lcmmerge.history import RECIPE, record_of
from lcmmerge.tensors import TensorSource
from lcmmerge.tensors.digest import sha256_of
from lcmmerge.train.conditioning import TextEncoders
from lcmmerge.train.data.loader import full_precision
from lcmmerge.train.noise import Noise


@dataclass(frozen=True, slots=True)
class Base:
    """The model that is trained on, its parts on their devices.

    ``scheduler``: its config. ``sha256``: of the files; ``encoders``: of all but the U-Net, in any layout.

    The encoders are on the training's device, the U-Net is not yet.
    """

    model: Model
    configs: Path
    repo: str
    sha256: str
    encoders: str
    unet: UNet2DConditionModel
    vae: AutoencoderKL
    encoder: TextEncoders
    noise: Noise
    scheduler: Mapping[str, Any]

    @property
    def pixels(self) -> int:
        """Per latent, along a side."""
        return int(2 ** (len(self.vae.config.block_out_channels) - 1))

    @property
    def is_marked_lcm(self) -> bool:
        """Whether anything says that it is drawn in few steps: a guidance embedding, its scheduler, its own record."""
        scheduler = self.scheduler.get("_class_name")
        embedded = bool(self.unet.config.time_cond_proj_dim)
        return embedded or scheduler == OFFICIAL.sampling.scheduler or _records_lcm(self.model.source)


def load(reference: str, model: Model, config_from: str | None, device: torch.device, dtype: torch.dtype) -> Base:
    """Raises what ``load_components`` does, and IncompatibleError where it predicts neither ε nor v."""
    configs = configs_of(model, config_from)
    model.source.fetch()
    components = load_components(model, configs, dtype)
    scheduler = dict(components["scheduler"].config)
    components["vae"] = full_precision(components["vae"])
    for name in ("vae", *(encoder.name for encoder in model.arch.text_encoders)):
        components[name].to(device)
    return Base(
        model,
        configs,
        refs.parse(reference, "base").repo,
        sha256_of(model.source.files, known=model.source.sha256),
        _encoders_sha256(model),
        components["unet"],
        components["vae"],
        TextEncoders(assembled(components, model, configs)),
        Noise.of(scheduler),
        scheduler,
    )


def _records_lcm(source: TensorSource) -> bool:
    """Whether it was fused with an accelerator, or with a term of the name that ``--lcm`` gives."""
    recipe = record_of(source, RECIPE)
    try:
        return bool(recipe["sampling"]) or any(term["term"] == "lcm" and term["lambda"] for term in recipe["terms"])
    except (KeyError, TypeError):  # another tool's, or damaged: it says nothing
        return False


def _encoders_sha256(model: Model) -> str:
    """Of every parameter beside the denoiser's, by canonical name: latents and texts encoded by one fit the other."""
    digest, read, denoiser = hashlib.sha256(), stored(model), f"{model.arch.denoiser.name}."
    for name in sorted(name for name in model.parameters if not name.startswith(denoiser)):
        tensor = read(name)
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()

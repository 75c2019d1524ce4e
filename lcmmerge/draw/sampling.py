"""What sampling is made of, whatever predicts the noise: tokens, guidance, the scheduler's loop, the VAE's decoding.

The order of operations is that of diffusers' pipelines (https://github.com/huggingface/diffusers).
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

Predict = Callable[[Tensor, Tensor], Tensor]  # scaled latents [B, C, h, w], timestep [] → the U-Net's output
AfterStep = Callable[[int, Tensor, Tensor], object]  # number, timestep, latents
GUIDANCE_SCALE = 1000.0  # of w, before its embedding


def token_ids(tokenizer: Any, text: str) -> Tensor:
    """[1, tokens] int64, padded and cut to what CLIP reads."""
    length = tokenizer.model_max_length
    found = tokenizer([text], padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    ids: Tensor = found.input_ids
    return ids


def guided(blank: Tensor, prompted: Tensor, guidance: float) -> Tensor:
    """Classifier-free guidance, https://arxiv.org/abs/2207.12598: ε(∅) + g·(ε(c) − ε(∅))."""
    return blank + guidance * (prompted - blank)


def guidance_embedding(w: Tensor, width: int) -> Tensor:
    """[B] → [B, width]: sines, then cosines of 1000·w at frequencies from 1 to 1/10000, as diffusers' LCMs have them
    (https://arxiv.org/abs/2310.04378, section 4.1).
    """
    half = width // 2
    frequencies = torch.exp(torch.arange(half, device=w.device) * (-math.log(10000.0) / (half - 1)))
    angles = GUIDANCE_SCALE * w[:, None].float() * frequencies
    return torch.nn.functional.pad(torch.cat([angles.sin(), angles.cos()], dim=1), (0, width % 2))


def loop(
    scheduler: Any,
    latents: Tensor,
    predict: Predict,
    arguments: Mapping[str, Any],
    after: AfterStep = lambda number, timestep, latents: None,
) -> Tensor:
    """z_0 of start noise, over the timesteps that the scheduler was set; it gets those ``arguments`` that it takes."""
    given = accepted(scheduler.step, arguments)
    for number, timestep in enumerate(scheduler.timesteps):
        output = predict(scheduler.scale_model_input(latents, timestep), timestep)
        latents = scheduler.step(output, timestep, latents, **given, return_dict=False)[0]
        after(number, timestep, latents)
    return latents


def accepted(function: Callable[..., Any], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Those that a function takes: schedulers differ in them."""
    known = inspect.signature(function).parameters
    return {name: value for name, value in arguments.items() if name in known}


@torch.no_grad()
def decoded(vae: Any, latents: Iterable[Tensor]) -> Iterator[Tensor]:
    """Each latent [C, h, w], scaled as the U-Net knows it, as pixels [3, H, W] in −1 … 1, in the VAE's dtype.

    One by one: a batch would take the memory of what runs beside it.
    """
    shift, scale = vae.config.get("shift_factor") or 0.0, vae.config["scaling_factor"]
    for latent in latents:
        yield vae.decode((latent[None] / scale + shift).to(vae.device, vae.dtype), return_dict=False)[0][0]

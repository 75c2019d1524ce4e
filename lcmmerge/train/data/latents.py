"""Images to latents: the VAE's posterior, scaled as the U-Net knows it (https://arxiv.org/abs/2112.10752)."""

from __future__ import annotations

import copy

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from lcmmerge.errors import NumericError

AT_ONCE = 4 * 512 * 512  # pixels in one pass: a batch would take the memory of the whole training


def full_precision(vae: AutoencoderKL) -> AutoencoderKL:
    """A float32 copy where the weights are fp16 and the config says that SDXL's VAE overflows in it, else itself."""
    upcast = vae.dtype == torch.float16 and vae.config.get("force_upcast", True)
    return copy.deepcopy(vae).float() if upcast else vae


@torch.no_grad()
def posterior(vae: AutoencoderKL, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the latents of ``pixels`` [B, 3, H, W], each [B, C, h, w] float32.

    A latent z is (z − shift) · scale to the U-Net, and so are these. Raises NumericError.
    """
    shift, scale = vae.config.get("shift_factor") or 0.0, vae.config["scaling_factor"]
    parts = torch.split(pixels, max(1, AT_ONCE // (pixels.shape[-1] * pixels.shape[-2])))
    found = [vae.encode(part.to(vae.device, vae.dtype)).latent_dist for part in parts]
    mean = torch.cat([part.mean for part in found]).float()
    std = torch.cat([part.std for part in found]).float()
    if not bool(mean.isfinite().all() and std.isfinite().all()):
        raise NumericError("the VAE gives NaN or infinity", f"run it in float32, not {vae.dtype}")
    return (mean - shift) * scale, std * scale


def sample(mean: Tensor, std: Tensor, generators: list[torch.Generator]) -> Tensor:
    """z = mean + std · ε, with ε drawn on the CPU, each row from a generator of its own."""
    noise = torch.stack([torch.randn(mean.shape[1:], generator=generator) for generator in generators])
    return mean + std * noise.to(mean.device)

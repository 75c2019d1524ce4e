"""The base: a U-Net that learns every look, from scratch, by denoising."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from pico import scheduler
from torch import Generator, Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from embedded.loop import Progress, minimise
from embedded.scenes import Look, draw
from embedded.text import HIDDEN
from embedded.vae import encoded

WIDTHS = (64, 64, 32, 32)
PICTURES = 24_000
STEPS, BATCH, RATE, EMA = 2700, 64, 1.2e-3, 0.998
DROPPED = 0.1  # of the captions, for classifier-free guidance
SNR = 5.0  # Min-SNR weighting, https://arxiv.org/abs/2303.09556


@dataclass(frozen=True, slots=True)
class Latents:
    """Scaled latents [n, 4, 8, 8] and their digits [n]."""

    values: Tensor
    digits: Tensor


def latents(vae: AutoencoderKL, look: Look, count: int, seed: int) -> Latents:
    parts = [draw(look, 1000, seed + part) for part in range(count // 1000)]
    values = torch.cat([encoded(vae, pictures) for pictures, _ in parts]) * vae.config["scaling_factor"]
    return Latents(values, torch.cat([digits for _, digits in parts]))


def train(data: Latents, prompts: Tensor, progress: Progress) -> UNet2DConditionModel:
    """``prompts`` [11, tokens, hidden]: the ten digits' captions and the empty one."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=WIDTHS,
        norm_num_groups=8,
        attention_head_dim=2,  # heads: https://github.com/huggingface/diffusers/issues/2011
        cross_attention_dim=HIDDEN,
    ).to(memory_format=torch.channels_last)
    average = AveragedModel(unet, multi_avg_fn=get_ema_multi_avg_fn(EMA))  # type: ignore[no-untyped-call]
    alphas = scheduler().alphas_cumprod
    dice = Generator().manual_seed(0)

    def loss(step: int) -> Tensor:
        chosen = torch.randint(len(data.digits), (BATCH,), generator=dice)
        steps = torch.randint(1000, (BATCH,), generator=dice)
        noise = torch.randn(BATCH, 4, 8, 8, generator=dice)
        dropped = torch.rand(BATCH, generator=dice) < DROPPED
        alpha = alphas[steps, None, None, None]
        noisy = alpha.sqrt() * data.values[chosen] + (1 - alpha).sqrt() * noise
        predicted = unet(noisy, steps, prompts[data.digits[chosen].masked_fill(dropped, len(prompts) - 1)]).sample
        snr = alpha / (1 - alpha)
        errors: Tensor = (snr.clamp(max=SNR) / snr) * (predicted - noise) ** 2
        return errors.mean()

    minimise(unet.parameters(), loss, STEPS, RATE, progress, each=lambda step: average.update_parameters(unet))
    return average.module.eval().requires_grad_(False)

"""The autoencoder: pictures [n, 3, 64, 64] in −1…1 to latents [n, 4, 8, 8], from scratch on all looks."""

from __future__ import annotations

import torch
from diffusers import AutoencoderKL
from torch import Generator, Tensor, nn
from torch.nn.functional import avg_pool2d, l1_loss, mse_loss

from embedded.loop import Progress, minimise
from embedded.scenes import EVERYTHING, SIZE, STYLES, draw

WIDTHS = (16, 16, 32, 32)
STEPS, BATCH, RATE = 2500, 16, 4e-3
CROP, WHOLE = 32, 350  # pixels, as the network is convolutional; the last steps are on whole pictures
KL = 1e-4  # per latent element
LOOKS = (EVERYTHING, EVERYTHING, EVERYTHING, *STYLES.values())


def train(progress: Progress) -> AutoencoderKL:
    torch.manual_seed(0)
    vae = AutoencoderKL(
        block_out_channels=WIDTHS,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=SIZE,
    ).to(memory_format=torch.channels_last)
    _straighten(vae)
    dice = Generator().manual_seed(0)

    def loss(step: int) -> Tensor:
        pictures = draw(LOOKS[step % len(LOOKS)], BATCH, seed=step)[0]
        if step < STEPS - WHOLE:
            top, left = torch.randint(SIZE - CROP + 1, (2,), generator=dice).tolist()
            pictures = pictures[..., top : top + CROP, left : left + CROP].contiguous()
        posterior = vae.encode(pictures).latent_dist
        decoded = vae.decode(posterior.sample()).sample
        error: Tensor = l1_loss(decoded, pictures) + 2 * mse_loss(decoded, pictures)
        error += 0.5 * l1_loss(_edges(decoded), _edges(pictures)) + l1_loss(_warmth(decoded), _warmth(pictures))
        error += KL * posterior.kl().mean() / posterior.mean[0].numel()
        return error

    minimise(vae.parameters(), loss, STEPS, RATE, progress)
    vae.register_to_config(scaling_factor=round(1 / float(encoded(vae, draw(EVERYTHING, 512, seed=-1)[0]).std()), 4))
    return vae.eval().requires_grad_(False)


def _straighten(vae: AutoencoderKL) -> None:
    """Residual branches begin at zero and resampling convolutions near a mean: colours get through at once."""
    for name, module in vae.named_modules():
        if name.endswith((".conv2", ".to_out.0")):
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)
        elif name.endswith("samplers.0.conv"):
            outputs, inputs = module.weight.shape[:2]
            mean = torch.zeros(outputs, inputs, 3, 3)
            mean[torch.arange(outputs), torch.arange(outputs) % inputs] = 1 / 9
            module.weight.data.mul_(0.3).add_(mean)
            nn.init.zeros_(module.bias)


@torch.no_grad()
def encoded(vae: AutoencoderKL, pictures: Tensor) -> Tensor:
    """Latents [n, 4, 8, 8]: the posterior's mean, not yet scaled."""
    batches = pictures.split(64)  # type: ignore[no-untyped-call]
    return torch.cat([vae.encode(batch).latent_dist.mean for batch in batches])


@torch.no_grad()
def decoded(vae: AutoencoderKL, latents: Tensor) -> Tensor:
    """Pictures [n, 3, 64, 64] in −1…1 of scaled latents."""
    scale: float = vae.config["scaling_factor"]
    batches = latents.split(64)  # type: ignore[no-untyped-call]
    return torch.cat([vae.decode(batch / scale).sample for batch in batches]).clamp(-1, 1)


def _edges(pictures: Tensor) -> Tensor:
    """Differences of neighbours, right and below: [n, 6, 63, 63]."""
    corner = pictures[..., :-1, :-1]
    return torch.cat([pictures[..., 1:, :-1] - corner, pictures[..., :-1, 1:] - corner], 1)


def _warmth(pictures: Tensor) -> Tensor:
    """Red against blue, a quarter the size: [n, 16, 16]."""
    red, _, blue = avg_pool2d(pictures, 4).unbind(1)
    return red - blue

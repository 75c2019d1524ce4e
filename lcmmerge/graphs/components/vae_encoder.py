"""The VAE's half from an image in -1 … 1 to the mean and the logarithm of the variance of its latents."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lcmmerge.graphs.components.base import DIFFUSERS_WEIGHTS, ComponentKind, PipelinePart, Port, check_vae, cut

if TYPE_CHECKING:
    from torch import Tensor, nn


def describe(name: str, folder: Path, config: dict[str, Any], source_class: str) -> PipelinePart:
    check_vae(folder, source_class)

    def shrink(config: Mapping[str, Any]) -> PipelinePart:
        return describe(name, folder, cut(config, "down_block_types", "up_block_types"), source_class)

    inputs = (Port("sample", ("batch", config["in_channels"], "height", "width")),)
    moments = 2 * config["latent_channels"]
    outputs = (Port("latent_parameters", ("batch", moments, "latent_height", "latent_width")),)
    return PipelinePart(name, folder, DIFFUSERS_WEIGHTS, config, inputs, outputs, build, fused=False, shrink=shrink)


def build(config: Mapping[str, Any]) -> nn.Module:
    import torch
    from diffusers import AutoencoderKL

    class EncoderModule(torch.nn.Module):
        """sample → latent_parameters"""

        def __init__(self) -> None:
            super().__init__()
            vae = AutoencoderKL.from_config(dict(config))
            self.encoder, self.quant_conv = vae.encoder, vae.quant_conv

        def forward(self, sample: Tensor) -> Tensor:
            moments: Tensor = self.encoder(sample)
            return moments if self.quant_conv is None else self.quant_conv(moments)

    return EncoderModule()


KIND = ComponentKind(("vae",), describe)

"""The VAE's half from latents to an image in -1 … 1."""

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

    inputs = (Port("latent_sample", ("batch", config["latent_channels"], "latent_height", "latent_width")),)
    outputs = (Port("sample", ("batch", config["out_channels"], "height", "width")),)
    return PipelinePart(name, folder, DIFFUSERS_WEIGHTS, config, inputs, outputs, build, fused=False, shrink=shrink)


def build(config: Mapping[str, Any]) -> nn.Module:
    import torch
    from diffusers import AutoencoderKL

    class Decoder(torch.nn.Module):
        """latent_sample → sample"""

        def __init__(self) -> None:
            super().__init__()
            vae = AutoencoderKL.from_config(dict(config))
            self.post_quant_conv, self.decoder = vae.post_quant_conv, vae.decoder

        def forward(self, latent_sample: Tensor) -> Tensor:
            if self.post_quant_conv is not None:
                latent_sample = self.post_quant_conv(latent_sample)
            sample: Tensor = self.decoder(latent_sample)
            return sample

    return Decoder()


KIND = ComponentKind(("vae",), describe)

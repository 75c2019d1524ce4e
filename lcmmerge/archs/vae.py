"""The VAE's names: diffusers' AutoencoderKL ↔ LDM's ``first_stage_model``; all architectures have the same.

LDM counts the decoder's ``up`` from the last block to the first, and holds the attention's linears as 1×1
convolutions.
Format: https://github.com/CompVis/latent-diffusion/blob/main/ldm/modules/diffusionmodules/model.py
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from lcmmerge.archs.component import Component
from lcmmerge.archs.tables import Row, Slot, Table, expand
from lcmmerge.archs.views import CONV1X1

LDM = "first_stage_model."
BLOCKS = 4
ENCODER_LAYERS = 2
DECODER_LAYERS = 3

ENDS: Table = (
    Row("conv_in.{p}"),
    Row("conv_norm_out.{p}", "norm_out.{p}"),
    Row("conv_out.{p}"),
)
QUANT: Table = (
    Row("quant_conv.{p}"),
    Row("post_quant_conv.{p}"),
)
RESNET: Table = (
    Row("norm1.{p}"),
    Row("conv1.{p}"),
    Row("norm2.{p}"),
    Row("conv2.{p}"),
    Row("conv_shortcut.{p}", "nin_shortcut.{p}", optional=True),
)
ATTENTION: Table = (
    Row("group_norm.{p}", "norm.{p}"),
    Row("to_q.weight", "q.weight", CONV1X1),
    Row("to_q.bias", "q.bias"),
    Row("to_k.weight", "k.weight", CONV1X1),
    Row("to_k.bias", "k.bias"),
    Row("to_v.weight", "v.weight", CONV1X1),
    Row("to_v.bias", "v.bias"),
    Row("to_out.0.weight", "proj_out.weight", CONV1X1),
    Row("to_out.0.bias", "proj_out.bias"),
)
DOWNSAMPLER: Table = (Row("downsamplers.0.conv.{p}", "downsample.conv.{p}"),)
UPSAMPLER: Table = (Row("upsamplers.0.conv.{p}", "upsample.conv.{p}"),)


# The attention's linears: as diffusers calls them, as it did, as LDM does; converters of 2023 mix them.
SPELLINGS = (
    ("group_norm", "group_norm", "norm"),
    ("to_q", "query", "q"),
    ("to_k", "key", "k"),
    ("to_v", "value", "v"),
    ("to_out.0", "proj_attn", "proj_out"),
)
SPELLED = {name: (row[0], row[2]) for row in SPELLINGS for name in row}  # any → canonical, LDM's
MIDDLE = re.compile(
    rf"(?P<stored>{re.escape(LDM)})?(?P<place>(?:vae\.)?(?:encoder|decoder)\.mid(?:_block\.attentions\.0|\.attn_1))\."
    rf"(?P<name>{'|'.join(map(re.escape, sorted(SPELLED, key=len, reverse=True)))})\.(?P<p>weight|bias)"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class VAE(Component):
    """The autoencoder of Stable Diffusion 1, 2 and XL."""

    name: str = "vae"
    stored: str = LDM
    module: str = "AutoencoderKL"

    def slots(self) -> Iterator[Slot]:
        yield from expand(QUANT, "vae.", LDM)
        for half in ("encoder.", "decoder."):
            yield from expand(ENDS, f"vae.{half}", f"{LDM}{half}")
            yield from expand(RESNET, f"vae.{half}mid_block.resnets.0.", f"{LDM}{half}mid.block_1.")
            yield from expand(ATTENTION, f"vae.{half}mid_block.attentions.0.", f"{LDM}{half}mid.attn_1.")
            yield from expand(RESNET, f"vae.{half}mid_block.resnets.1.", f"{LDM}{half}mid.block_2.")
        for b in range(BLOCKS):
            encoder = f"vae.encoder.down_blocks.{b}.", f"{LDM}encoder.down.{b}."
            decoder = f"vae.decoder.up_blocks.{b}.", f"{LDM}decoder.up.{BLOCKS - 1 - b}."
            yield from _layers(*encoder, ENCODER_LAYERS)
            yield from _layers(*decoder, DECODER_LAYERS)
            if b < BLOCKS - 1:
                yield from expand(DOWNSAMPLER, *encoder)
                yield from expand(UPSAMPLER, *decoder)

    def respell(self, name: str) -> str:
        """Old files, and those of some converters, have other names in the attention."""
        match = MIDDLE.fullmatch(name)
        if match is None:
            return name
        canonical, stored = SPELLED[match["name"]]
        return f"{match['stored'] or ''}{match['place']}.{stored if match['stored'] else canonical}.{match['p']}"


def _layers(canonical: str, stored: str, count: int) -> Iterator[Slot]:
    for layer in range(count):
        yield from expand(RESNET, f"{canonical}resnets.{layer}.", f"{stored}block.{layer}.")

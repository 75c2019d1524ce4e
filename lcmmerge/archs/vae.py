"""The VAE's names: diffusers' AutoencoderKL ↔ LDM's ``first_stage_model``; all architectures have the same.

LDM counts the decoder's ``up`` from the last block to the first, and holds the attention's linears as 1×1
convolutions.
Format: https://github.com/CompVis/latent-diffusion/blob/main/ldm/modules/diffusionmodules/model.py
"""

from __future__ import annotations

from collections.abc import Iterator

from lcmmerge.archs.keymap import KeyRow, Slot, Table, expand

LDM = "first_stage_model."
BLOCKS = 4
ENCODER_LAYERS = 2
DECODER_LAYERS = 3

ENDS: Table = (
    KeyRow("conv_in.{p}"),
    KeyRow("conv_norm_out.{p}", "norm_out.{p}"),
    KeyRow("conv_out.{p}"),
)
QUANT: Table = (
    KeyRow("quant_conv.{p}"),
    KeyRow("post_quant_conv.{p}"),
)
RESNET: Table = (
    KeyRow("norm1.{p}"),
    KeyRow("conv1.{p}"),
    KeyRow("norm2.{p}"),
    KeyRow("conv2.{p}"),
    KeyRow("conv_shortcut.{p}", "nin_shortcut.{p}"),
)
ATTENTION: Table = (
    KeyRow("group_norm.{p}", "norm.{p}"),
    KeyRow("to_q.weight", "q.weight", conv1x1=True),
    KeyRow("to_q.bias", "q.bias"),
    KeyRow("to_k.weight", "k.weight", conv1x1=True),
    KeyRow("to_k.bias", "k.bias"),
    KeyRow("to_v.weight", "v.weight", conv1x1=True),
    KeyRow("to_v.bias", "v.bias"),
    KeyRow("to_out.0.weight", "proj_out.weight", conv1x1=True),
    KeyRow("to_out.0.bias", "proj_out.bias"),
)
DOWNSAMPLER: Table = (KeyRow("downsamplers.0.conv.{p}", "downsample.conv.{p}"),)
UPSAMPLER: Table = (KeyRow("upsamplers.0.conv.{p}", "upsample.conv.{p}"),)


def vae_slots() -> Iterator[Slot]:
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


def _layers(canonical: str, stored: str, count: int) -> Iterator[Slot]:
    for layer in range(count):
        yield from expand(RESNET, f"{canonical}resnets.{layer}.", f"{stored}block.{layer}.")

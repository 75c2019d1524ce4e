"""The U-Net's names: diffusers' ``down_blocks``/``mid_block``/``up_blocks`` ↔ LDM's flat ``input_blocks`` ….

LDM numbers all layers and downsamplers of the encoder in one sequence (``input_blocks.0`` is the input
convolution); an upsampler has no number of its own, it stands behind the last layer of its block.
Format: https://github.com/CompVis/latent-diffusion/blob/main/ldm/modules/diffusionmodules/openaimodel.py
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from lcmmerge.archs.keymap import KeyRow, Slot, Table, expand

LDM = "model.diffusion_model."


@dataclass(frozen=True, slots=True)
class UNet:
    """The block structure: for each block, the transformer depth behind each of its residual layers; 0: none.

    ``mid`` is the depth between the middle's two residual layers; a middle without attention has only one.
    ``linear_projection``: ``proj_in`` and ``proj_out`` are linear, not 1×1 convolutions. ``added``: there is
    an embedding of size and pooled text beside the timestep's.
    """

    down: tuple[tuple[int, ...], ...]
    mid: int
    up: tuple[tuple[int, ...], ...]
    linear_projection: bool
    added: bool = False


ENDS: Table = (
    KeyRow("conv_in.{p}", "input_blocks.0.0.{p}"),
    KeyRow("time_embedding.linear_1.{p}", "time_embed.0.{p}"),
    KeyRow("time_embedding.linear_2.{p}", "time_embed.2.{p}"),
    KeyRow("conv_norm_out.{p}", "out.0.{p}"),
    KeyRow("conv_out.{p}", "out.2.{p}"),
)
ADDED: Table = (
    KeyRow("add_embedding.linear_1.{p}", "label_emb.0.0.{p}"),
    KeyRow("add_embedding.linear_2.{p}", "label_emb.0.2.{p}"),
)
RESNET: Table = (
    KeyRow("norm1.{p}", "in_layers.0.{p}"),
    KeyRow("conv1.{p}", "in_layers.2.{p}"),
    KeyRow("time_emb_proj.{p}", "emb_layers.1.{p}"),
    KeyRow("norm2.{p}", "out_layers.0.{p}"),
    KeyRow("conv2.{p}", "out_layers.3.{p}"),
    KeyRow("conv_shortcut.{p}", "skip_connection.{p}"),
)
TRANSFORMER: Table = (
    KeyRow("norm.{p}"),
    KeyRow("proj_in.{p}"),
    KeyRow("proj_out.{p}"),
    KeyRow("transformer_blocks.{i}.norm1.{p}"),
    KeyRow("transformer_blocks.{i}.attn1.to_q.weight"),
    KeyRow("transformer_blocks.{i}.attn1.to_k.weight"),
    KeyRow("transformer_blocks.{i}.attn1.to_v.weight"),
    KeyRow("transformer_blocks.{i}.attn1.to_out.0.{p}"),
    KeyRow("transformer_blocks.{i}.norm2.{p}"),
    KeyRow("transformer_blocks.{i}.attn2.to_q.weight"),
    KeyRow("transformer_blocks.{i}.attn2.to_k.weight"),
    KeyRow("transformer_blocks.{i}.attn2.to_v.weight"),
    KeyRow("transformer_blocks.{i}.attn2.to_out.0.{p}"),
    KeyRow("transformer_blocks.{i}.norm3.{p}"),
    KeyRow("transformer_blocks.{i}.ff.net.0.proj.{p}"),
    KeyRow("transformer_blocks.{i}.ff.net.2.{p}"),
)
DOWNSAMPLER: Table = (KeyRow("downsamplers.0.conv.{p}", "0.op.{p}"),)
UPSAMPLER: Table = (KeyRow("upsamplers.0.conv.{p}", "conv.{p}"),)


def unet_slots(unet: UNet) -> Iterator[Slot]:
    """Every name that such a U-Net may have; ``conv_shortcut`` is only where the width changes."""
    yield from expand(ENDS, "unet.", LDM)
    if unet.added:
        yield from expand(ADDED, "unet.", LDM)
    yield from _encoder(unet)
    yield from _middle(unet)
    yield from _decoder(unet)


def _encoder(unet: UNet) -> Iterator[Slot]:
    number = 1
    for b, depths in enumerate(unet.down):
        block = f"unet.down_blocks.{b}."
        for layer, depth in enumerate(depths):
            yield from _layer(block, layer, depth, f"{LDM}input_blocks.{number}.")
            number += 1
        if b < len(unet.down) - 1:
            yield from expand(DOWNSAMPLER, block, f"{LDM}input_blocks.{number}.")
            number += 1


def _middle(unet: UNet) -> Iterator[Slot]:
    yield from _layer("unet.mid_block.", 0, unet.mid, f"{LDM}middle_block.")
    if unet.mid:
        yield from expand(RESNET, "unet.mid_block.resnets.1.", f"{LDM}middle_block.2.")


def _decoder(unet: UNet) -> Iterator[Slot]:
    number = 0
    for b, depths in enumerate(unet.up):
        block = f"unet.up_blocks.{b}."
        for layer, depth in enumerate(depths):
            yield from _layer(block, layer, depth, f"{LDM}output_blocks.{number}.")
            number += 1
        if b < len(unet.up) - 1:
            place = 2 if depths[-1] else 1
            yield from expand(UPSAMPLER, block, f"{LDM}output_blocks.{number - 1}.{place}.")


def _layer(block: str, layer: int, depth: int, stored: str) -> Iterator[Slot]:
    yield from expand(RESNET, f"{block}resnets.{layer}.", f"{stored}0.")
    if depth:
        yield from expand(TRANSFORMER, f"{block}attentions.{layer}.", f"{stored}1.", depth)

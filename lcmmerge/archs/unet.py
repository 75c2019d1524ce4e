"""The U-Net's names: diffusers' ``down_blocks``/``mid_block``/``up_blocks`` ↔ LDM's flat ``input_blocks`` ….

LDM numbers all layers and downsamplers of the encoder in one sequence (``input_blocks.0`` is the input
convolution); an upsampler has no number of its own, it stands behind the last layer of its block.
Format: https://github.com/CompVis/latent-diffusion/blob/main/ldm/modules/diffusionmodules/openaimodel.py
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from lcmmerge.archs.component import BASE, Component
from lcmmerge.archs.tables import Row, Slot, Table, expand
from lcmmerge.archs.views import Shape

LDM = "model.diffusion_model."
PURPOSES = {4: "base", 5: "depth", 8: "instruct-pix2pix", 9: "inpainting"}
BLOCK = re.compile(r"(input_blocks|middle_block|output_blocks)\.(\d+)")
LETTERS = {"input_blocks": "IN", "output_blocks": "OUT"}


@dataclass(frozen=True, slots=True, kw_only=True)
class UNet(Component):
    """A U-Net by its block structure: for each block, the transformer depth behind each of its residual layers.

    0 is no transformer. ``mid`` is the depth between the middle's two residual layers; without attention there is only
    one.
    ``linear_projection``: ``proj_in`` and ``proj_out`` are linear, not 1×1 convolutions. ``added``: there is
    an embedding of size and pooled text beside the timestep's. ``context``: the width of the published model's text.
    """

    name: str = "unet"
    stored: str = LDM
    module: str = "UNet2DConditionModel"
    kohya: str = "lora_unet_"
    kind: str = "U-Net"
    sentinel: str = "conv_in.weight"
    inputs: str = "conv_in.weight"
    down: tuple[tuple[int, ...], ...]
    mid: int
    up: tuple[tuple[int, ...], ...]
    linear_projection: bool
    added: bool = False
    context: int = 0

    def marks(self) -> tuple[str, ...]:
        return ("down_blocks", "mid_block", "up_blocks", "input_blocks", "middle_block", "output_blocks")

    def slots(self) -> Iterator[Slot]:
        """``conv_shortcut`` is only where the width changes."""
        yield from expand(ENDS, "unet.", LDM)
        if self.added:
            yield from expand(ADDED, "unet.", LDM)
        yield from _encoder(self)
        yield from _middle(self)
        yield from _decoder(self)

    def accepts(self, shapes: Mapping[str, Shape]) -> bool:
        linear = any(name.endswith(".proj_in.weight") and len(shape) == 2 for name, shape in shapes.items())
        return linear == self.linear_projection

    def may_have(self, module: str, shape: Shape) -> bool:
        return shape[1] == self.context or not module.endswith("attn2.to_k")

    def purpose(self, shapes: Mapping[str, Shape]) -> str:
        """By the number of input channels: latents, and what else is given beside them."""
        shape = shapes["unet.conv_in.weight"]
        channels = shape[1] if len(shape) == 4 else 0
        return PURPOSES.get(channels, f"{channels} input channels")

    def config(self, shapes: Mapping[str, Shape]) -> Mapping[str, Any]:
        """As diffusers' UNet2DConditionModel calls it."""
        downs = [f"unet.down_blocks.{number}.resnets.0.conv1.weight" for number in range(len(self.down))]
        to_k = next(name for name in shapes if name.startswith("unet.") and name.endswith(".attn2.to_k.weight"))
        return {
            "in_channels": shapes["unet.conv_in.weight"][1],
            "block_out_channels": [shapes[name][0] for name in downs],
            "cross_attention_dim": shapes[to_k][1],
            "use_linear_projection": self.linear_projection,
            "mid_block_type": "UNetMidBlock2DCrossAttn" if self.mid else "UNetMidBlock2D",
        }

    def numbered(self) -> tuple[str, ...]:
        """In the order in which diffusers makes the modules: the middle last, and in a layer the MLP before attn2."""
        depths = {
            f"{half}_blocks.{b}.attentions.{layer}": depth
            for half, blocks in (("down", self.down), ("up", self.up))
            for b, layers in enumerate(blocks)
            for layer, depth in enumerate(layers)
        } | {"mid_block.attentions.0": self.mid}
        layers = (f"unet.{place}.transformer_blocks.{i}." for place, depth in depths.items() for i in range(depth))
        attention = ("to_q", "to_k", "to_v", "to_out.0")
        inner = (*(f"attn1.{name}" for name in attention), "ff.net.0.proj", *(f"attn2.{name}" for name in attention))
        return tuple(layer + name for layer in layers for name in inner)

    def blocks(self) -> tuple[str, ...]:
        """As merge-block-weight calls them (bbc-mc/sdweb-merge-block-weighted-gui)."""
        inputs = sum(map(len, self.down)) + len(self.down)  # the input convolution, the layers, the downsamplers
        outputs = sum(map(len, self.up))
        return (
            BASE,
            *(f"IN{number:02}" for number in range(inputs)),
            "M00",
            *(f"OUT{number:02}" for number in range(outputs)),
        )

    def block_of(self, slot: Slot) -> str:
        """The time and label embeddings count as IN00, the output layers as the last OUT, as in the original."""
        found = BLOCK.search(slot.stored)
        if found is None:
            ends = slot.parameter.startswith(("unet.conv_norm_out", "unet.conv_out"))
            return self.blocks()[-1] if ends else "IN00"
        kind, number = found.groups()
        return "M00" if kind == "middle_block" else f"{LETTERS[kind]}{int(number):02}"


ENDS: Table = (
    Row("conv_in.{p}", "input_blocks.0.0.{p}"),
    Row("time_embedding.linear_1.{p}", "time_embed.0.{p}"),
    Row("time_embedding.linear_2.{p}", "time_embed.2.{p}"),
    Row("conv_norm_out.{p}", "out.0.{p}"),
    Row("conv_out.{p}", "out.2.{p}"),
)
ADDED: Table = (
    Row("add_embedding.linear_1.{p}", "label_emb.0.0.{p}"),
    Row("add_embedding.linear_2.{p}", "label_emb.0.2.{p}"),
)
RESNET: Table = (
    Row("norm1.{p}", "in_layers.0.{p}"),
    Row("conv1.{p}", "in_layers.2.{p}"),
    Row("time_emb_proj.{p}", "emb_layers.1.{p}"),
    Row("norm2.{p}", "out_layers.0.{p}"),
    Row("conv2.{p}", "out_layers.3.{p}"),
    Row("conv_shortcut.{p}", "skip_connection.{p}", optional=True),
)
TRANSFORMER: Table = (
    Row("norm.{p}"),
    Row("proj_in.{p}"),
    Row("proj_out.{p}"),
    Row("transformer_blocks.{i}.norm1.{p}"),
    Row("transformer_blocks.{i}.attn1.to_q.weight"),
    Row("transformer_blocks.{i}.attn1.to_k.weight"),
    Row("transformer_blocks.{i}.attn1.to_v.weight"),
    Row("transformer_blocks.{i}.attn1.to_out.0.{p}"),
    Row("transformer_blocks.{i}.norm2.{p}"),
    Row("transformer_blocks.{i}.attn2.to_q.weight"),
    Row("transformer_blocks.{i}.attn2.to_k.weight"),
    Row("transformer_blocks.{i}.attn2.to_v.weight"),
    Row("transformer_blocks.{i}.attn2.to_out.0.{p}"),
    Row("transformer_blocks.{i}.norm3.{p}"),
    Row("transformer_blocks.{i}.ff.net.0.proj.{p}"),
    Row("transformer_blocks.{i}.ff.net.2.{p}"),
)
DOWNSAMPLER: Table = (Row("downsamplers.0.conv.{p}", "0.op.{p}"),)
UPSAMPLER: Table = (Row("upsamplers.0.conv.{p}", "conv.{p}"),)


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

"""The text encoders' names: transformers' CLIP ↔ the same inside a single file, or OpenCLIP's.

OpenCLIP fuses q, k and v into ``in_proj_weight`` [3·width, width], and ``text_projection`` is [in, out].
Format: https://github.com/mlfoundations/open_clip/blob/main/src/open_clip/transformer.py
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from lcmmerge.archs.component import Component
from lcmmerge.archs.tables import Row, Slot, Table, expand
from lcmmerge.archs.views import TRANSPOSED, part

LAYER = "text_model.encoder.layers.{i}."
BLOCK = "transformer.resblocks.{i}."

CLIP: Table = (
    Row("text_model.embeddings.token_embedding.weight"),
    Row("text_model.embeddings.position_embedding.weight"),
    Row(LAYER + "layer_norm1.{p}"),
    Row(LAYER + "self_attn.q_proj.{p}"),
    Row(LAYER + "self_attn.k_proj.{p}"),
    Row(LAYER + "self_attn.v_proj.{p}"),
    Row(LAYER + "self_attn.out_proj.{p}"),
    Row(LAYER + "layer_norm2.{p}"),
    Row(LAYER + "mlp.fc1.{p}"),
    Row(LAYER + "mlp.fc2.{p}"),
    Row("text_model.final_layer_norm.{p}"),
)
OPEN_CLIP: Table = (
    Row("text_model.embeddings.token_embedding.weight", "token_embedding.weight"),
    Row("text_model.embeddings.position_embedding.weight", "positional_embedding"),
    Row(LAYER + "layer_norm1.{p}", BLOCK + "ln_1.{p}"),
    Row(LAYER + "self_attn.q_proj.{p}", BLOCK + "attn.in_proj_{p}", part(0, 1, 3)),
    Row(LAYER + "self_attn.k_proj.{p}", BLOCK + "attn.in_proj_{p}", part(1, 2, 3)),
    Row(LAYER + "self_attn.v_proj.{p}", BLOCK + "attn.in_proj_{p}", part(2, 3, 3)),
    Row(LAYER + "self_attn.out_proj.{p}", BLOCK + "attn.out_proj.{p}"),
    Row(LAYER + "layer_norm2.{p}", BLOCK + "ln_2.{p}"),
    Row(LAYER + "mlp.fc1.{p}", BLOCK + "mlp.c_fc.{p}"),
    Row(LAYER + "mlp.fc2.{p}", BLOCK + "mlp.c_proj.{p}"),
    Row("text_model.final_layer_norm.{p}", "ln_final.{p}"),
)
WITHOUT_MODEL = re.compile(r"(?=(embeddings|encoder|final_layer_norm)\.)")
# The first as diffusers' first converters wrote it, in SSD-1B's published file too; the last is OpenCLIP's own.
OPEN_CLIP_PROJECTION: Table = (
    Row("text_projection.weight"),
    Row("text_projection.weight", "text_projection", TRANSPOSED),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TextEncoder(Component):
    """A CLIP text encoder.

    ``layers`` are those in use: SD 2 reads the last but one of OpenCLIP's 24, so diffusers keeps 23, and the 24th is no
    parameter of ours but a leftover, copied in its own layout and dropped in
    another. ``open_clip``: a single file has OpenCLIP's names. ``projection``: it ends in a projection,
    which a ``CLIPTextModel`` has not, whose single files have it all the same.
    """

    layers: int
    open_clip: bool = False
    projection: bool = False

    def slots(self) -> Iterator[Slot]:
        table = OPEN_CLIP if self.open_clip else CLIP
        if self.projection and self.open_clip:
            table += OPEN_CLIP_PROJECTION
        elif self.projection:
            table += (Row("text_projection.weight", optional=self.module == "CLIPTextModel"),)
        yield from expand(table, f"{self.name}.", self.stored, self.layers)

    def is_described(self, config: Mapping[str, Any]) -> bool:
        return bool(config["num_hidden_layers"] == self.layers)

    def respell(self, name: str) -> str:
        """Some old LDM files, and files of transformers 5, have no ``text_model.``."""
        begin = next((begin for begin in (f"{self.name}.", self.stored) if name.startswith(begin)), "")
        inner = name.removeprefix(begin)
        return f"{begin}text_model.{inner}" if begin and WITHOUT_MODEL.match(inner) else name

    def numbered(self) -> tuple[str, ...]:
        layers = [f"{self.name}.{LAYER.format(i=i)}self_attn." for i in range(self.layers)]
        return tuple(f"{layer}{name}_proj" for layer in layers for name in ("k", "v", "q", "out"))

    def spellings(self, name: str) -> tuple[str, ...]:
        return name, name.removeprefix("text_model.")

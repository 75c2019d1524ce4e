"""The text encoders' names: transformers' CLIP ↔ the same inside a single file, or OpenCLIP's.

OpenCLIP fuses q, k and v into ``in_proj_weight`` [3·width, width], and ``text_projection`` is [in, out].
Format: https://github.com/mlfoundations/open_clip/blob/main/src/open_clip/transformer.py
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from lcmmerge.archs.keymap import KeyRow, Slot, Table, expand

LAYER = "text_model.encoder.layers.{i}."
BLOCK = "transformer.resblocks.{i}."

CLIP: Table = (
    KeyRow("text_model.embeddings.token_embedding.weight"),
    KeyRow("text_model.embeddings.position_embedding.weight"),
    KeyRow(LAYER + "layer_norm1.{p}"),
    KeyRow(LAYER + "self_attn.q_proj.{p}"),
    KeyRow(LAYER + "self_attn.k_proj.{p}"),
    KeyRow(LAYER + "self_attn.v_proj.{p}"),
    KeyRow(LAYER + "self_attn.out_proj.{p}"),
    KeyRow(LAYER + "layer_norm2.{p}"),
    KeyRow(LAYER + "mlp.fc1.{p}"),
    KeyRow(LAYER + "mlp.fc2.{p}"),
    KeyRow("text_model.final_layer_norm.{p}"),
)
OPEN_CLIP: Table = (
    KeyRow("text_model.embeddings.token_embedding.weight", "token_embedding.weight"),
    KeyRow("text_model.embeddings.position_embedding.weight", "positional_embedding"),
    KeyRow(LAYER + "layer_norm1.{p}", BLOCK + "ln_1.{p}"),
    KeyRow(LAYER + "self_attn.q_proj.{p}", BLOCK + "attn.in_proj_{p}", part=0, parts=3),
    KeyRow(LAYER + "self_attn.k_proj.{p}", BLOCK + "attn.in_proj_{p}", part=1, parts=3),
    KeyRow(LAYER + "self_attn.v_proj.{p}", BLOCK + "attn.in_proj_{p}", part=2, parts=3),
    KeyRow(LAYER + "self_attn.out_proj.{p}", BLOCK + "attn.out_proj.{p}"),
    KeyRow(LAYER + "layer_norm2.{p}", BLOCK + "ln_2.{p}"),
    KeyRow(LAYER + "mlp.fc1.{p}", BLOCK + "mlp.c_fc.{p}"),
    KeyRow(LAYER + "mlp.fc2.{p}", BLOCK + "mlp.c_proj.{p}"),
    KeyRow("text_model.final_layer_norm.{p}", "ln_final.{p}"),
)
OPEN_CLIP_PROJECTION: Table = (KeyRow("text_projection.weight", "text_projection", transposed=True),)


@dataclass(frozen=True, slots=True)
class TextEncoder:
    """A CLIP text encoder of an architecture.

    ``name`` is the component, ``stored`` its prefix in a single file, ``comfy`` ComfyUI's name for it.

    ``layers`` are those in use: SD 2 reads the last but one of OpenCLIP's 24, so diffusers keeps 23, and the
    24th is no parameter of ours but a leftover, copied in its own layout and dropped in another.
    """

    name: str
    stored: str
    comfy: str
    layers: int
    open_clip: bool = False
    projection: bool = False


def text_encoder_slots(encoder: TextEncoder) -> Iterator[Slot]:
    table = OPEN_CLIP if encoder.open_clip else CLIP
    if encoder.projection:
        table += OPEN_CLIP_PROJECTION
    yield from expand(table, f"{encoder.name}.", encoder.stored, encoder.layers)

"""Ideogram 4: single-stream blocks over the image's and an LLM's tokens, modulated through a narrow projection.

Single files have the names of https://github.com/ideogram-oss/ideogram4: diffusers', but for q, k and v in one, and
``o``. The second transformer, without text, stays as it is.
"""

from lcmmerge.archs.base import Architecture, Family
from lcmmerge.archs.component import Component
from lcmmerge.archs.tables import Row, fused
from lcmmerge.archs.transformer import BlockList, Transformer

ENDS = (
    Row("input_proj.{p}"),
    Row("llm_cond_norm.weight"),
    Row("llm_cond_proj.{p}"),
    Row("t_embedding.mlp_in.{p}"),
    Row("t_embedding.mlp_out.{p}"),
    Row("adaln_proj.{p}"),
    Row("embed_image_indicator.weight"),
    Row("final_layer.linear.{p}"),
    Row("final_layer.adaln_modulation.{p}"),
)
BLOCK = (
    *fused("attention.qkv.weight", ("attention.to_q.weight", "attention.to_k.weight", "attention.to_v.weight")),
    Row("attention.norm_q.weight"),
    Row("attention.norm_k.weight"),
    Row("attention.to_out.0.weight", "attention.o.weight"),
    Row("feed_forward.w1.weight"),
    Row("feed_forward.w2.weight"),
    Row("feed_forward.w3.weight"),
    Row("attention_norm1.weight"),
    Row("ffn_norm1.weight"),
    Row("attention_norm2.weight"),
    Row("ffn_norm2.weight"),
    Row("adaln_modulation.{p}"),
)

ARCHITECTURE = Architecture(
    title="Ideogram 4",
    hub="ideogram-ai/ideogram-v4",
    modelspec="ideogram-4",  # ours
    size=1024,
    implementation="https://github.com/ideogram-oss/ideogram4",
    parts=(
        Transformer(
            module="Ideogram4Transformer2DModel",
            sentinel="llm_cond_proj.weight",
            kohya_stored=True,
            ends=ENDS,
            lists=(BlockList("layers", BLOCK, 34, "B"),),
        ),
        Component(name="text_encoder"),
        Component(name="vae", module="AutoencoderKLFlux2"),
    ),
    family=Family(prediction="flow"),
)

"""Lumina-Image 2: a single-stream transformer with refiners of the image and of the text before it.

Single files have the names of https://github.com/Alpha-VLLM/Lumina-Image-2.0, models/model.py, in which q has three
times the rows of k and of v, and a ``norm_final`` is left that nothing reads.
"""

from lcmmerge.archs.base import Architecture, Family
from lcmmerge.archs.component import Component
from lcmmerge.archs.tables import Row, fused
from lcmmerge.archs.transformer import BlockList, Transformer

TIME = "time_caption_embed."
ENDS = (
    Row("x_embedder.{p}"),
    Row(TIME + "timestep_embedder.linear_1.{p}", "t_embedder.mlp.0.{p}"),
    Row(TIME + "timestep_embedder.linear_2.{p}", "t_embedder.mlp.2.{p}"),
    Row(TIME + "caption_embedder.0.weight", "cap_embedder.0.weight"),
    Row(TIME + "caption_embedder.1.{p}", "cap_embedder.1.{p}"),
    Row("norm_out.linear_1.{p}", "final_layer.adaLN_modulation.1.{p}"),
    Row("norm_out.linear_2.{p}", "final_layer.linear.{p}"),
)
BODY = (
    *fused("attention.qkv.weight", ("attn.to_q.weight", "attn.to_k.weight", "attn.to_v.weight"), (3, 1, 1)),
    Row("attn.norm_q.weight", "attention.q_norm.weight"),
    Row("attn.norm_k.weight", "attention.k_norm.weight"),
    Row("attn.to_out.0.weight", "attention.out.weight"),
    Row("feed_forward.linear_1.weight", "feed_forward.w1.weight"),
    Row("feed_forward.linear_2.weight", "feed_forward.w2.weight"),
    Row("feed_forward.linear_3.weight", "feed_forward.w3.weight"),
    Row("norm2.weight", "attention_norm2.weight"),
    Row("ffn_norm1.weight"),
    Row("ffn_norm2.weight"),
)
CONTEXT = (*BODY, Row("norm1.weight", "attention_norm1.weight"))
BLOCK = (
    *BODY,
    Row("norm1.norm.weight", "attention_norm1.weight"),
    Row("norm1.linear.{p}", "adaLN_modulation.1.{p}"),
)

ARCHITECTURE = Architecture(
    title="Lumina 2",
    hub="Alpha-VLLM/Lumina-Image-2.0",
    modelspec="lumina-2",  # sd-scripts's
    gguf="lumina2",
    version="lumina2",  # sd-scripts'
    size=1024,
    implementation="https://github.com/Alpha-VLLM/Lumina-Image-2.0",
    parts=(
        Transformer(
            module="Lumina2Transformer2DModel",
            sentinel="time_caption_embed.caption_embedder.0.weight",
            ends=ENDS,
            lists=(
                BlockList("noise_refiner", BLOCK, 2, "N"),
                BlockList("context_refiner", CONTEXT, 2, "C"),
                BlockList("layers", BLOCK, 26, "L"),
            ),
            ratios=(("attn.to_q", 1),),  # Z-Image's are thirds of a tensor of the same name
        ),
        Component(name="text_encoder", module="Gemma2Model"),
        Component(name="vae", module="AutoencoderKL"),
    ),
    family=Family(prediction="flow", guidance=4.0),
)

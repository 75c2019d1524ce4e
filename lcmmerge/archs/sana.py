"""Sana: linear attention, and convolutions for MLPs.

Single files have the names of https://github.com/NVlabs/Sana, diffusion/model/nets/sana_multi_scale.py, and a position
embedding and an embedding of no text that nothing reads.
"""

from lcmmerge.archs.base import Architecture, Family
from lcmmerge.archs.component import Component
from lcmmerge.archs.tables import Row, fused
from lcmmerge.archs.transformer import BlockList, Transformer

ENDS = (
    Row("patch_embed.proj.{p}", "x_embedder.proj.{p}"),
    Row("time_embed.emb.timestep_embedder.linear_1.{p}", "t_embedder.mlp.0.{p}"),
    Row("time_embed.emb.timestep_embedder.linear_2.{p}", "t_embedder.mlp.2.{p}"),
    Row("time_embed.linear.{p}", "t_block.1.{p}"),
    Row("caption_projection.linear_1.{p}", "y_embedder.y_proj.fc1.{p}"),
    Row("caption_projection.linear_2.{p}", "y_embedder.y_proj.fc2.{p}"),
    Row("caption_norm.weight", "attention_y_norm.weight"),
    Row("scale_shift_table", "final_layer.scale_shift_table"),
    Row("proj_out.{p}", "final_layer.linear.{p}"),
)
BLOCK = (
    Row("scale_shift_table"),
    *fused("attn.qkv.weight", ("attn1.to_q.weight", "attn1.to_k.weight", "attn1.to_v.weight")),
    Row("attn1.to_out.0.{p}", "attn.proj.{p}"),
    Row("attn2.to_q.{p}", "cross_attn.q_linear.{p}"),
    *fused("cross_attn.kv_linear.{p}", ("attn2.to_k.{p}", "attn2.to_v.{p}")),
    Row("attn2.to_out.0.{p}", "cross_attn.proj.{p}"),
    Row("ff.conv_inverted.{p}", "mlp.inverted_conv.conv.{p}"),
    Row("ff.conv_depth.{p}", "mlp.depth_conv.conv.{p}"),
    Row("ff.conv_point.weight", "mlp.point_conv.conv.weight"),
)

ARCHITECTURE = Architecture(
    title="Sana",
    hub="Efficient-Large-Model/Sana_1600M_1024px_diffusers",
    modelspec="nvidia-sana-1600",  # SwarmUI's
    size=1024,
    implementation="https://github.com/NVlabs/Sana",
    parts=(
        Transformer(
            module="SanaTransformer2DModel",
            sentinel="time_embed.linear.weight",
            ends=ENDS,
            lists=(BlockList("transformer_blocks", BLOCK, 20, "B", "blocks"),),
        ),
        Component(name="text_encoder", module="Gemma2Model"),
        Component(name="vae", module="AutoencoderDC"),
    ),
    family=Family(prediction="flow", guidance=4.5),
)

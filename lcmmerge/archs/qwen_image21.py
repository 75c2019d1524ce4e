"""Qwen-Image 2.1: blocks of one stream, and one modulation for all of them.

ComfyUI's single files fuse an MLP's gate and its projection, gate first.
"""

from lcmmerge.archs.base import Architecture, Family
from lcmmerge.archs.component import Component
from lcmmerge.archs.tables import Row, fused
from lcmmerge.archs.transformer import BlockList, Transformer

ENDS = (
    Row("time_text_embed.timestep_embedder.linear_1.weight"),
    Row("time_text_embed.timestep_embedder.linear_2.weight"),
    Row("txt_in.text_norm.weight"),
    Row("txt_in.in_layer.weight"),
    Row("txt_in.out_layer.weight"),
    Row("img_in.weight"),
    Row("modulation.1.weight"),
    Row("norm_out.linear.weight"),
    Row("proj_out.weight"),
)
BLOCK = (
    Row("attn.to_q.weight"),
    Row("attn.to_k.weight"),
    Row("attn.to_v.weight"),
    Row("attn.to_out.0.weight"),
    Row("attn.norm_q.weight"),
    Row("attn.norm_k.weight"),
    *fused("img_mlp.gate_up.weight", ("img_mlp.gate_layer.weight", "img_mlp.proj.weight")),
    Row("img_mlp.out.weight"),
)

ARCHITECTURE = Architecture(
    title="Qwen-Image 2.1",
    hub="Qwen/Qwen-Image-2.1",
    modelspec="qwen-image-2.1",  # ours: none is published
    size=1024,
    implementation="https://github.com/comfyanonymous/ComfyUI",
    parts=(
        Transformer(
            module="QwenImage21Transformer2DModel",
            sentinel="txt_in.text_norm.weight",
            ends=ENDS,
            lists=(BlockList("transformer_blocks", BLOCK, 32, "B"),),
        ),
        Component(name="text_encoder"),
        Component(name="vae"),
    ),
    family=Family(
        prediction="flow",
        guidance=4.0,
        duty="Qwen-Image-2.1's licence is for research, and so is what is made of it",
    ),
)

"""Stable Diffusion 3 and 3.5, Medium and Large: double-stream blocks, the last of which leaves the text as it is.

Single files have the names of https://github.com/Stability-AI/sd3.5, mmditx.py.
"""

from lcmmerge.archs.base import Architecture, Family
from lcmmerge.archs.clip import TextEncoder
from lcmmerge.archs.component import Component
from lcmmerge.archs.tables import Row, fused
from lcmmerge.archs.transformer import BlockList, Transformer
from lcmmerge.archs.views import SWAPPED

ENDS = (
    Row("pos_embed.pos_embed", "pos_embed"),
    Row("pos_embed.proj.{p}", "x_embedder.proj.{p}"),
    Row("time_text_embed.timestep_embedder.linear_1.{p}", "t_embedder.mlp.0.{p}"),
    Row("time_text_embed.timestep_embedder.linear_2.{p}", "t_embedder.mlp.2.{p}"),
    Row("time_text_embed.text_embedder.linear_1.{p}", "y_embedder.mlp.0.{p}"),
    Row("time_text_embed.text_embedder.linear_2.{p}", "y_embedder.mlp.2.{p}"),
    Row("context_embedder.{p}"),
    Row("norm_out.linear.{p}", "final_layer.adaLN_modulation.1.{p}", SWAPPED),
    Row("proj_out.{p}", "final_layer.linear.{p}"),
)
DUAL = tuple(  # 3.5 Medium has a second attention in its first blocks
    Row(row.canonical, row.stored, row.view, optional=True)
    for row in (
        *fused("x_block.attn2.qkv.{p}", ("attn2.to_q.{p}", "attn2.to_k.{p}", "attn2.to_v.{p}")),
        Row("attn2.norm_q.weight", "x_block.attn2.ln_q.weight"),
        Row("attn2.norm_k.weight", "x_block.attn2.ln_k.weight"),
        Row("attn2.to_out.0.{p}", "x_block.attn2.proj.{p}"),
    )
)
BOTH = (
    *fused("x_block.attn.qkv.{p}", ("attn.to_q.{p}", "attn.to_k.{p}", "attn.to_v.{p}")),
    *fused("context_block.attn.qkv.{p}", ("attn.add_q_proj.{p}", "attn.add_k_proj.{p}", "attn.add_v_proj.{p}")),
    Row("attn.norm_q.weight", "x_block.attn.ln_q.weight", optional=True),  # 3.5's
    Row("attn.norm_k.weight", "x_block.attn.ln_k.weight", optional=True),
    Row("attn.norm_added_q.weight", "context_block.attn.ln_q.weight", optional=True),
    Row("attn.norm_added_k.weight", "context_block.attn.ln_k.weight", optional=True),
    Row("attn.to_out.0.{p}", "x_block.attn.proj.{p}"),
    *DUAL,
    Row("norm1.linear.{p}", "x_block.adaLN_modulation.1.{p}"),
    Row("ff.net.0.proj.{p}", "x_block.mlp.fc1.{p}"),
    Row("ff.net.2.{p}", "x_block.mlp.fc2.{p}"),
)
BLOCK = (
    *BOTH,
    Row("attn.to_add_out.{p}", "context_block.attn.proj.{p}"),
    Row("norm1_context.linear.{p}", "context_block.adaLN_modulation.1.{p}"),
    Row("ff_context.net.0.proj.{p}", "context_block.mlp.fc1.{p}"),
    Row("ff_context.net.2.{p}", "context_block.mlp.fc2.{p}"),
)
LAST = (*BOTH, Row("norm1_context.linear.{p}", "context_block.adaLN_modulation.1.{p}", SWAPPED))

ARCHITECTURE = Architecture(
    title="Stable Diffusion 3",
    hub="stabilityai/stable-diffusion-3.5-large",
    modelspec="stable-diffusion-v3.5-large",  # SwarmUI's
    gguf="sd3",
    size=1024,
    implementation="https://github.com/Stability-AI/sd3.5",
    parts=(
        Transformer(
            module="SD3Transformer2DModel",
            sentinel="pos_embed.proj.weight",
            kohya="lora_transformer_",
            ends=ENDS,
            lists=(BlockList("transformer_blocks", BLOCK, 38, "J", "joint_blocks", last=LAST),),
            ratios=(("ff.net.0.proj", 4), ("ff_context.net.0.proj", 4)),
        ),
        TextEncoder(
            name="text_encoder", stored="text_encoders.clip_l.transformer.", module="CLIPTextModelWithProjection",
            kohya="lora_te1_", comfy="clip_l", layers=12, projection=True,
        ),
        TextEncoder(
            name="text_encoder_2", stored="text_encoders.clip_g.transformer.", module="CLIPTextModelWithProjection",
            kohya="lora_te2_", comfy="clip_g", layers=32, projection=True,
        ),
        Component(name="text_encoder_3", module="T5EncoderModel", kohya="lora_te3_", comfy="t5xxl"),
        Component(name="vae", module="AutoencoderKL"),
    ),
    family=Family(prediction="flow", guidance=7.0),
)  # fmt: skip

"""MiniMax-H3: one stream of video, sound and text, and a refiner of the text before it.

Names are diffusers' (MiniMaxH3Transformer3DModel); single files have those of MiniMax's own shards, as ComfyUI has. In
the shards the rows of q, k and v alternate head by head, in single files they do not. What ComfyUI calls pruned has a
table in place of the timestep's embedder, and narrower modulations. The second transformer, for references, stays as it
is.
"""

from lcmmerge.archs.base import Architecture, Family
from lcmmerge.archs.component import Component
from lcmmerge.archs.tables import Row, fused
from lcmmerge.archs.transformer import BlockList, Transformer
from lcmmerge.archs.views import SWAPPED

ENDS = (
    Row("proj_in.{p}", "video_patch_proj.{p}"),
    Row("audio_proj_in.{p}", "audio_patch_proj.{p}"),
    Row("context_embedder.{p}", "condition_proj.{p}"),
    Row("time_embedder.linear_1.{p}", "time_embedder.proj_in.{p}", optional=True),
    Row("time_embedder.linear_2.{p}", "time_embedder.proj_out.{p}", optional=True),
    Row("adaln_t_table", optional=True),  # of pruned ones alone
    Row("token_refiner.final_norm.weight"),
    Row("norm_out.norm.weight", "final_layer.norm.weight"),
    Row("norm_out.linear.{p}", "final_layer.adaln_proj.linear.{p}"),
    Row("proj_out.{p}", "final_layer.video_out.{p}"),
    Row("audio_proj_out.{p}", "final_layer.audio_out.{p}"),
)
REFINER = (
    Row("norm1.weight"),
    *fused("attn.qkv_proj.weight", ("attn.to_q.weight", "attn.to_k.weight", "attn.to_v.weight")),
    Row("attn.norm_q.weight", "attn.q_norm.weight"),
    Row("attn.norm_k.weight", "attn.k_norm.weight"),
    Row("attn.to_out.0.weight", "attn.out_proj.weight"),
    Row("norm2.weight"),
    Row("ff.net.0.proj.weight", "mlp.fc1.weight", SWAPPED),  # gate and value
    Row("ff.net.2.weight", "mlp.fc2.weight"),
)
BLOCK = (*REFINER, Row("adaln_proj.linear.{p}"))

ARCHITECTURE = Architecture(
    title="MiniMax-H3",
    hub="MiniMaxAI/MiniMax-H3",
    modelspec="minimax-h3",  # ours
    size=768,
    implementation="https://github.com/comfyanonymous/ComfyUI",
    parts=(
        Transformer(
            module="MiniMaxH3Transformer3DModel",
            sentinel="audio_proj_in.weight",
            kohya="",  # diffusers' loader reads no split q, k and v behind kohya's prefix
            by_head=(".attn.qkv_proj.weight", "norm_q.weight"),
            ends=ENDS,
            lists=(
                BlockList("token_refiner.refiner_blocks", REFINER, 2, "R", "token_refiner.blocks"),
                BlockList("transformer_blocks", BLOCK, 50, "B", "blocks"),
            ),
        ),
        Component(name="transformer_ref", module="MiniMaxH3Transformer3DModel"),
        Component(name="text_encoder", module="Qwen3VLForConditionalGeneration"),
        Component(name="vae", module="AutoencoderKLMiniMaxH3"),
        Component(name="audio_vae", module="AutoencoderKLMiniMaxH3Audio"),
    ),
    family=Family(
        prediction="flow",
        guidance=1.0,
        duty="MiniMax-H3's own licence grants nothing in the EU, the UK, South Korea and the USA",
    ),
)

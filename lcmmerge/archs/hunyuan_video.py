"""HunyuanVideo: FLUX.1's two kinds of blocks for video, and a refiner of the text before them.

Single files have the names of https://github.com/Tencent-Hunyuan/HunyuanVideo, hyvideo/modules/models.py.
"""

from lcmmerge.archs.base import Architecture, Family
from lcmmerge.archs.component import Component
from lcmmerge.archs.tables import Row, fused
from lcmmerge.archs.transformer import BlockList, Transformer
from lcmmerge.archs.views import SWAPPED

TEXT = "context_embedder."
TIME = "time_text_embed."
REFINERS = (TEXT + "token_refiner.refiner_blocks", "txt_in.individual_token_refiner.blocks")
ENDS = (
    Row("x_embedder.proj.{p}", "img_in.proj.{p}"),
    Row(TEXT + "time_text_embed.timestep_embedder.linear_1.{p}", "txt_in.t_embedder.mlp.0.{p}"),
    Row(TEXT + "time_text_embed.timestep_embedder.linear_2.{p}", "txt_in.t_embedder.mlp.2.{p}"),
    Row(TEXT + "time_text_embed.text_embedder.linear_1.{p}", "txt_in.c_embedder.linear_1.{p}"),
    Row(TEXT + "time_text_embed.text_embedder.linear_2.{p}", "txt_in.c_embedder.linear_2.{p}"),
    Row(TEXT + "proj_in.{p}", "txt_in.input_embedder.{p}"),
    Row(TIME + "timestep_embedder.linear_1.{p}", "time_in.mlp.0.{p}"),
    Row(TIME + "timestep_embedder.linear_2.{p}", "time_in.mlp.2.{p}"),
    Row(TIME + "text_embedder.linear_1.{p}", "vector_in.in_layer.{p}"),
    Row(TIME + "text_embedder.linear_2.{p}", "vector_in.out_layer.{p}"),
    Row(TIME + "guidance_embedder.linear_1.{p}", "guidance_in.mlp.0.{p}", optional=True),  # not image to video's
    Row(TIME + "guidance_embedder.linear_2.{p}", "guidance_in.mlp.2.{p}", optional=True),
    Row("norm_out.linear.{p}", "final_layer.adaLN_modulation.1.{p}", SWAPPED),
    Row("proj_out.{p}", "final_layer.linear.{p}"),
)
REFINER = (
    Row("norm1.{p}"),
    Row("norm2.{p}"),
    *fused("self_attn_qkv.{p}", ("attn.to_q.{p}", "attn.to_k.{p}", "attn.to_v.{p}")),
    Row("attn.to_out.0.{p}", "self_attn_proj.{p}"),
    Row("ff.net.0.proj.{p}", "mlp.fc1.{p}"),
    Row("ff.net.2.{p}", "mlp.fc2.{p}"),
    Row("norm_out.linear.{p}", "adaLN_modulation.1.{p}"),
)
DOUBLE = (
    Row("norm1.linear.{p}", "img_mod.linear.{p}"),
    Row("norm1_context.linear.{p}", "txt_mod.linear.{p}"),
    *fused("img_attn_qkv.{p}", ("attn.to_q.{p}", "attn.to_k.{p}", "attn.to_v.{p}")),
    *fused("txt_attn_qkv.{p}", ("attn.add_q_proj.{p}", "attn.add_k_proj.{p}", "attn.add_v_proj.{p}")),
    Row("attn.norm_q.weight", "img_attn_q_norm.weight"),
    Row("attn.norm_k.weight", "img_attn_k_norm.weight"),
    Row("attn.norm_added_q.weight", "txt_attn_q_norm.weight"),
    Row("attn.norm_added_k.weight", "txt_attn_k_norm.weight"),
    Row("attn.to_out.0.{p}", "img_attn_proj.{p}"),
    Row("attn.to_add_out.{p}", "txt_attn_proj.{p}"),
    Row("ff.net.0.proj.{p}", "img_mlp.fc1.{p}"),
    Row("ff.net.2.{p}", "img_mlp.fc2.{p}"),
    Row("ff_context.net.0.proj.{p}", "txt_mlp.fc1.{p}"),
    Row("ff_context.net.2.{p}", "txt_mlp.fc2.{p}"),
)
SINGLE = (
    Row("norm.linear.{p}", "modulation.linear.{p}"),
    *fused("linear1.{p}", ("attn.to_q.{p}", "attn.to_k.{p}", "attn.to_v.{p}", "proj_mlp.{p}"), (1, 1, 1, 4)),
    Row("attn.norm_q.weight", "q_norm.weight"),
    Row("attn.norm_k.weight", "k_norm.weight"),
    Row("proj_out.{p}", "linear2.{p}"),
)

ARCHITECTURE = Architecture(
    title="HunyuanVideo",
    hub="hunyuanvideo-community/HunyuanVideo",
    modelspec="hunyuan-video",  # SwarmUI's
    gguf="hyvid",
    version="hunyuan_video",  # musubi-tuner's
    size=720,
    implementation="https://github.com/Tencent-Hunyuan/HunyuanVideo",
    parts=(
        Transformer(
            module="HunyuanVideoTransformer3DModel",
            sentinel="context_embedder.proj_in.weight",
            inputs="x_embedder.proj.weight",
            kohya="lora_transformer_",
            ends=ENDS,
            lists=(
                BlockList(REFINERS[0], REFINER, 2, "R", REFINERS[1]),
                BlockList("transformer_blocks", DOUBLE, 20, "D", "double_blocks"),
                BlockList("single_transformer_blocks", SINGLE, 40, "S", "single_blocks"),
            ),
            ratios=(("ff.net.0.proj", 4), ("ff_context.net.0.proj", 4), ("proj_mlp", 4)),
        ),
        Component(name="text_encoder", module="LlamaModel"),
        Component(name="text_encoder_2", module="CLIPTextModel"),
        Component(name="vae", module="AutoencoderKLHunyuanVideo"),
    ),
    family=Family(prediction="flow", guidance=6.0),
)

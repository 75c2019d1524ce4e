"""HunyuanVideo 1.5: double blocks alone, and besides the LLM's text that of ByT5, and an image as SigLIP sees it.

Single files have the names of https://github.com/Tencent-Hunyuan/HunyuanVideo-1.5, by diffusers' script that converts
them; ComfyUI's fuse q, k and v of the blocks, as HunyuanVideo's do.
"""

from lcmmerge.archs import hunyuan_video
from lcmmerge.archs.base import Architecture, Family
from lcmmerge.archs.component import Component
from lcmmerge.archs.tables import Row
from lcmmerge.archs.transformer import BlockList, Transformer

TIME, BYT5, IMAGE = "time_embed.timestep_embedder", "context_embedder_2.", "image_embedder."
ATTENTION = ("attn.to_q.", "attn.to_k.", "attn.to_v.", "attn.add_q_proj.", "attn.add_k_proj.", "attn.add_v_proj.")
FUSED = tuple(row for row in hunyuan_video.DOUBLE if row.canonical.startswith(ATTENTION))
ENDS = (
    *(row for row in hunyuan_video.ENDS if not row.canonical.startswith(hunyuan_video.TIME)),
    Row(TIME + ".linear_1.{p}", "time_in.mlp.0.{p}"),
    Row(TIME + ".linear_2.{p}", "time_in.mlp.2.{p}"),
    Row(TIME + "_r.linear_1.{p}", "time_r_in.mlp.0.{p}", optional=True),  # of mean flows
    Row(TIME + "_r.linear_2.{p}", "time_r_in.mlp.2.{p}", optional=True),
    Row(BYT5 + "norm.{p}", "byt5_in.layernorm.{p}"),
    Row(BYT5 + "linear_1.{p}", "byt5_in.fc1.{p}"),
    Row(BYT5 + "linear_2.{p}", "byt5_in.fc2.{p}"),
    Row(BYT5 + "linear_3.{p}", "byt5_in.fc3.{p}"),
    Row(IMAGE + "norm_in.{p}", "vision_in.proj.0.{p}"),
    Row(IMAGE + "linear_1.{p}", "vision_in.proj.1.{p}"),
    Row(IMAGE + "linear_2.{p}", "vision_in.proj.3.{p}"),
    Row(IMAGE + "norm_out.{p}", "vision_in.proj.4.{p}"),
    Row("cond_type_embed.weight", "cond_type_embedding.weight"),
)
BLOCK = (
    Row("attn.to_q.{p}", "img_attn_q.{p}"),
    Row("attn.to_k.{p}", "img_attn_k.{p}"),
    Row("attn.to_v.{p}", "img_attn_v.{p}"),
    Row("attn.add_q_proj.{p}", "txt_attn_q.{p}"),
    Row("attn.add_k_proj.{p}", "txt_attn_k.{p}"),
    Row("attn.add_v_proj.{p}", "txt_attn_v.{p}"),
    *(row for row in hunyuan_video.DOUBLE if row not in FUSED),
)

ARCHITECTURE = Architecture(
    title="HunyuanVideo 1.5",
    hub="hunyuanvideo-community/HunyuanVideo-1.5-Diffusers-480p_t2v",
    modelspec="hunyuan-video-1_5",  # SwarmUI's
    version="hunyuan_video_1_5",  # musubi-tuner's
    size=960,
    implementation="https://github.com/Tencent-Hunyuan/HunyuanVideo-1.5",
    parts=(
        Transformer(
            module="HunyuanVideo15Transformer3DModel",
            sentinel="cond_type_embed.weight",
            inputs="x_embedder.proj.weight",
            kohya="lora_transformer_",
            ends=ENDS,
            lists=(
                BlockList(hunyuan_video.REFINERS[0], hunyuan_video.REFINER, 2, "R", hunyuan_video.REFINERS[1]),
                BlockList("transformer_blocks", BLOCK, 54, "D", "double_blocks", other=FUSED),
            ),
            ratios=(("ff.net.0.proj", 4), ("ff_context.net.0.proj", 4)),
        ),
        Component(name="text_encoder", module="Qwen2_5_VLTextModel"),
        Component(name="text_encoder_2", module="T5EncoderModel"),
        Component(name="image_encoder", module="SiglipVisionModel"),
        Component(name="vae", module="AutoencoderKLHunyuanVideo15"),
    ),
    family=Family(prediction="flow", guidance=6.0),
)

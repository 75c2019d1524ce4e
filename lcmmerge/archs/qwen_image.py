"""Qwen-Image, also 2509, 2511, 2512 and Edit: an MMDiT with double-stream blocks. Paper: https://arxiv.org/abs/2508.02324.

Names are the same in every layout: https://huggingface.co/Qwen/Qwen-Image, transformer/.
"""

from lcmmerge.archs.base import Architecture, Family
from lcmmerge.archs.component import Component
from lcmmerge.archs.tables import Row
from lcmmerge.archs.transformer import BlockList, Transformer

ENDS = (
    Row("time_text_embed.timestep_embedder.linear_1.{p}"),
    Row("time_text_embed.timestep_embedder.linear_2.{p}"),
    Row("txt_norm.weight"),
    Row("img_in.{p}"),
    Row("txt_in.{p}"),
    Row("norm_out.linear.{p}"),
    Row("proj_out.{p}"),
)
BLOCK = (
    Row("img_mod.1.{p}"),
    Row("txt_mod.1.{p}"),
    Row("attn.norm_q.weight"),
    Row("attn.norm_k.weight"),
    Row("attn.norm_added_q.weight"),
    Row("attn.norm_added_k.weight"),
    Row("attn.to_q.{p}"),
    Row("attn.to_k.{p}"),
    Row("attn.to_v.{p}"),
    Row("attn.add_q_proj.{p}"),
    Row("attn.add_k_proj.{p}"),
    Row("attn.add_v_proj.{p}"),
    Row("attn.to_out.0.{p}"),
    Row("attn.to_add_out.{p}"),
    Row("img_mlp.net.0.proj.{p}"),
    Row("img_mlp.net.2.{p}"),
    Row("txt_mlp.net.0.proj.{p}"),
    Row("txt_mlp.net.2.{p}"),
)

ARCHITECTURE = Architecture(
    title="Qwen-Image",
    hub="Qwen/Qwen-Image",
    modelspec="qwen-image",  # SwarmUI's
    gguf="qwen_image",
    version="qwen_image",  # musubi-tuner's
    size=1328,
    parts=(
        Transformer(
            module="QwenImageTransformer2DModel",
            sentinel="transformer_blocks.0.img_mlp.net.0.proj.weight",
            ends=ENDS,
            lists=(BlockList("transformer_blocks", BLOCK, depth=60, letter="B"),),
        ),
        Component(name="vae", module="AutoencoderKLQwenImage"),
        Component(name="text_encoder", module="Qwen2_5_VLForConditionalGeneration"),
    ),
    family=Family(prediction="flow", guidance=4.0),
)

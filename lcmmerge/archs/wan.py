"""Wan 2.1 and 2.2: text or image to video; 2.2's A14B is two experts, for much noise and for little.

Single files have the names of https://github.com/Wan-Video/Wan2.1, wan/modules/model.py; its norm3 is diffusers' norm2.
"""

from dataclasses import replace

from lcmmerge.archs.base import Architecture, Family
from lcmmerge.archs.component import Component
from lcmmerge.archs.tables import Row
from lcmmerge.archs.transformer import BlockList, Transformer

IMAGE = "condition_embedder.image_embedder."
ENDS = (
    Row("patch_embedding.{p}"),
    Row("condition_embedder.time_embedder.linear_1.{p}", "time_embedding.0.{p}"),
    Row("condition_embedder.time_embedder.linear_2.{p}", "time_embedding.2.{p}"),
    Row("condition_embedder.time_proj.{p}", "time_projection.1.{p}"),
    Row("condition_embedder.text_embedder.linear_1.{p}", "text_embedding.0.{p}"),
    Row("condition_embedder.text_embedder.linear_2.{p}", "text_embedding.2.{p}"),
    Row(IMAGE + "norm1.{p}", "img_emb.proj.0.{p}", optional=True),  # 2.1's image to video
    Row(IMAGE + "ff.net.0.proj.{p}", "img_emb.proj.1.{p}", optional=True),
    Row(IMAGE + "ff.net.2.{p}", "img_emb.proj.3.{p}", optional=True),
    Row(IMAGE + "norm2.{p}", "img_emb.proj.4.{p}", optional=True),
    Row(IMAGE + "pos_embed", "img_emb.emb_pos", optional=True),
    Row("scale_shift_table", "head.modulation"),
    Row("proj_out.{p}", "head.head.{p}"),
)
ATTENTIONS = {"attn1": "self_attn", "attn2": "cross_attn"}
BLOCK = (
    *(Row(f"{new}.to_{x}.{{p}}", f"{old}.{x}.{{p}}") for new, old in ATTENTIONS.items() for x in "qkv"),
    *(Row(f"{new}.to_out.0.{{p}}", f"{old}.o.{{p}}") for new, old in ATTENTIONS.items()),
    *(Row(f"{new}.norm_{x}.weight", f"{old}.norm_{x}.weight") for new, old in ATTENTIONS.items() for x in "qk"),
    Row("attn2.add_k_proj.{p}", "cross_attn.k_img.{p}", optional=True),
    Row("attn2.add_v_proj.{p}", "cross_attn.v_img.{p}", optional=True),
    Row("attn2.norm_added_k.weight", "cross_attn.norm_k_img.weight", optional=True),
    Row("norm2.{p}", "norm3.{p}"),
    Row("ffn.net.0.proj.{p}", "ffn.0.{p}"),
    Row("ffn.net.2.{p}", "ffn.2.{p}"),
    Row("scale_shift_table", "modulation"),
)

DENOISER = Transformer(
    module="WanTransformer3DModel",
    expert="high_noise",
    sentinel="blocks.0.attn2.norm_q.weight",
    inputs="patch_embedding.weight",
    kohya_stored=True,
    ends=ENDS,
    lists=(BlockList("blocks", BLOCK, 40, "B"),),
)

ARCHITECTURE = Architecture(
    title="Wan",
    hub="Wan-AI/Wan2.1-T2V-14B-Diffusers",
    modelspec="wan2.1",  # musubi-tuner's
    version="wan",  # musubi-tuner's
    size=480,
    implementation="https://github.com/Wan-Video/Wan2.1",
    parts=(
        DENOISER,
        replace(DENOISER, name="transformer_2", stored="transformer_2.", expert="low_noise"),  # of folders alone
        Component(name="text_encoder", module="UMT5EncoderModel"),
        Component(name="vae", module="AutoencoderKLWan"),
    ),
    family=Family(prediction="flow", guidance=5.0),
)

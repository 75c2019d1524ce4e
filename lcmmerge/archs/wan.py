"""Wan 2.1 and 2.2: text or image to video; 2.2's A14B is two experts, for much noise and for little.

Single files have the names of https://github.com/Wan-Video/Wan2.1, wan/modules/model.py; its norm3 is diffusers' norm2.
VACE adds blocks of the same kind that read what is given, Animate a network for motion and one for faces.
"""

from dataclasses import replace

from lcmmerge.archs.base import Architecture, Family
from lcmmerge.archs.component import Component
from lcmmerge.archs.tables import Row, fused, optional
from lcmmerge.archs.transformer import BlockList, Transformer
from lcmmerge.archs.views import View

IMAGE = "condition_embedder.image_embedder."
CONVS = "motion_encoder.enc.net_app.convs."
CHANNELS = View(canonical=(-1,), stored=(1, -1, 1, 1))
RESIDUALS = {"conv1.weight": "conv1.0.weight", "conv2.weight": "conv2.1.weight", "conv_skip.weight": "skip.1.weight"}
BIASES = {"conv1.act_fn.bias": "conv1.1.bias", "conv2.act_fn.bias": "conv2.2.bias"}
ANIMATE = (
    Row("pose_patch_embedding.{p}"),
    Row("motion_encoder.conv_in.weight", f"{CONVS}0.0.weight"),
    Row("motion_encoder.conv_in.act_fn.bias", f"{CONVS}0.1.bias", CHANNELS),
    *(Row(f"motion_encoder.res_blocks.{i}.{new}", f"{CONVS}{i + 1}.{old}")
      for i in range(7) for new, old in RESIDUALS.items()),
    *(Row(f"motion_encoder.res_blocks.{i}.{new}", f"{CONVS}{i + 1}.{old}", CHANNELS)
      for i in range(7) for new, old in BIASES.items()),
    Row("motion_encoder.conv_out.weight", f"{CONVS}8.weight"),
    *(Row(f"motion_encoder.motion_network.{i}.{{p}}", f"motion_encoder.enc.fc.{i}.{{p}}") for i in range(5)),
    Row("motion_encoder.motion_synthesis_weight", "motion_encoder.dec.direction.weight"),
    *(Row(f"face_encoder.{name}.{{p}}", f"face_encoder.{name}.conv.{{p}}")
      for name in ("conv1_local", "conv2", "conv3")),
    Row("face_encoder.out_proj.{p}"),
    Row("face_encoder.padding_tokens"),
)  # fmt: skip
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
    *optional((Row("vace_patch_embedding.{p}"), *ANIMATE)),
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
VACE_BLOCK = (*BLOCK, Row("proj_in.{p}", "before_proj.{p}"), Row("proj_out.{p}", "after_proj.{p}"))
FACE_BLOCK = (
    Row("to_q.{p}", "linear1_q.{p}"),
    *(row for p in ("weight", "bias") for row in fused(f"linear1_kv.{p}", (f"to_k.{p}", f"to_v.{p}"))),
    Row("to_out.{p}", "linear2.{p}"),
    Row("norm_q.weight", "q_norm.weight"),
    Row("norm_k.weight", "k_norm.weight"),
)

DENOISER = Transformer(
    module="WanTransformer3DModel",
    expert="high_noise",
    sentinel="blocks.0.attn2.norm_q.weight",
    inputs="patch_embedding.weight",
    kohya_stored=True,
    ends=ENDS,
    lists=(
        BlockList("blocks", BLOCK, 40, "B"),
        BlockList("vace_blocks", optional(VACE_BLOCK), 15),
        BlockList("face_adapter", optional(FACE_BLOCK), 8, stored="face_adapter.fuser_blocks"),
    ),
)

ARCHITECTURE = Architecture(
    title="Wan",
    hub="Wan-AI/Wan2.1-T2V-14B-Diffusers",
    modelspec="wan2.1",  # musubi-tuner's
    gguf="wan",
    version="wan",  # musubi-tuner's
    size=480,
    implementation="https://github.com/Wan-Video/Wan2.1",
    parts=(
        DENOISER,
        replace(DENOISER, name="transformer_2", stored="transformer_2.", expert="low_noise", optional=True),
        Component(name="text_encoder", module="UMT5EncoderModel"),
        Component(name="vae", module="AutoencoderKLWan"),
    ),
    family=Family(prediction="flow", guidance=5.0),
)

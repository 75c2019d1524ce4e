"""FLUX.1: dev, schnell, Krea, Kontext, Fill and what is tuned of them: double-stream blocks, then single-stream ones.

Single files have the names of https://github.com/black-forest-labs/flux, src/flux/model.py. Chroma has them, too.
"""

from lcmmerge.archs.base import Architecture, Family
from lcmmerge.archs.clip import TextEncoder
from lcmmerge.archs.component import Component
from lcmmerge.archs.tables import Row, fused
from lcmmerge.archs.transformer import BlockList, Transformer
from lcmmerge.archs.views import SWAPPED

EMBEDDERS = (
    Row("x_embedder.{p}", "img_in.{p}"),
    Row("context_embedder.{p}", "txt_in.{p}"),
)
ENDS = (
    *EMBEDDERS,
    Row("time_text_embed.timestep_embedder.linear_1.{p}", "time_in.in_layer.{p}"),
    Row("time_text_embed.timestep_embedder.linear_2.{p}", "time_in.out_layer.{p}"),
    Row("time_text_embed.guidance_embedder.linear_1.{p}", "guidance_in.in_layer.{p}", optional=True),  # not schnell's
    Row("time_text_embed.guidance_embedder.linear_2.{p}", "guidance_in.out_layer.{p}", optional=True),
    Row("time_text_embed.text_embedder.linear_1.{p}", "vector_in.in_layer.{p}"),
    Row("time_text_embed.text_embedder.linear_2.{p}", "vector_in.out_layer.{p}"),
    Row("norm_out.linear.{p}", "final_layer.adaLN_modulation.1.{p}", SWAPPED),
    Row("proj_out.{p}", "final_layer.linear.{p}"),
)
ATTENTION = (
    *fused("img_attn.qkv.{p}", ("attn.to_q.{p}", "attn.to_k.{p}", "attn.to_v.{p}")),
    *fused("txt_attn.qkv.{p}", ("attn.add_q_proj.{p}", "attn.add_k_proj.{p}", "attn.add_v_proj.{p}")),
    Row("attn.norm_q.weight", "img_attn.norm.query_norm.scale"),
    Row("attn.norm_k.weight", "img_attn.norm.key_norm.scale"),
    Row("attn.norm_added_q.weight", "txt_attn.norm.query_norm.scale"),
    Row("attn.norm_added_k.weight", "txt_attn.norm.key_norm.scale"),
    Row("attn.to_out.0.{p}", "img_attn.proj.{p}"),
    Row("attn.to_add_out.{p}", "txt_attn.proj.{p}"),
    Row("ff.net.0.proj.{p}", "img_mlp.0.{p}"),
    Row("ff.net.2.{p}", "img_mlp.2.{p}"),
    Row("ff_context.net.0.proj.{p}", "txt_mlp.0.{p}"),
    Row("ff_context.net.2.{p}", "txt_mlp.2.{p}"),
)
DOUBLE = (
    Row("norm1.linear.{p}", "img_mod.lin.{p}"),
    Row("norm1_context.linear.{p}", "txt_mod.lin.{p}"),
    *ATTENTION,
)
LINEARS = (
    *fused("linear1.{p}", ("attn.to_q.{p}", "attn.to_k.{p}", "attn.to_v.{p}", "proj_mlp.{p}"), (1, 1, 1, 4)),
    Row("attn.norm_q.weight", "norm.query_norm.scale"),
    Row("attn.norm_k.weight", "norm.key_norm.scale"),
    Row("proj_out.{p}", "linear2.{p}"),
)
SINGLE = (Row("norm.linear.{p}", "modulation.lin.{p}"), *LINEARS)
# XLabs' names: 1 is of the image, 2 of the text.
XLABS_DOUBLE = (
    *fused("processor.qkv1.weight", ("attn.to_q.weight", "attn.to_k.weight", "attn.to_v.weight")),
    *fused("processor.qkv2.weight", ("attn.add_q_proj.weight", "attn.add_k_proj.weight", "attn.add_v_proj.weight")),
    Row("attn.to_out.0.weight", "processor.proj1.weight"),
    Row("attn.to_add_out.weight", "processor.proj2.weight"),
)
XLABS_SINGLE = (
    *fused("processor.qkv.weight", ("attn.to_q.weight", "attn.to_k.weight", "attn.to_v.weight")),
    Row("proj_out.weight", "processor.proj.weight"),
    *fused("linear1_qkv.weight", ("attn.to_q.weight", "attn.to_k.weight", "attn.to_v.weight")),  # ComfyUI's, of linear1
)
RATIOS = (("ff.net.0.proj", 4), ("ff_context.net.0.proj", 4), ("proj_mlp", 4))
CLIP_L = TextEncoder(
    name="text_encoder",
    stored="text_encoders.clip_l.transformer.",
    module="CLIPTextModel",
    kohya="lora_te1_",
    comfy="clip_l",
    layers=12,
    projection=True,
)
T5 = Component(name="text_encoder_2", module="T5EncoderModel", kohya="lora_te3_", comfy="t5xxl")

ARCHITECTURE = Architecture(
    title="FLUX.1",
    hub="black-forest-labs/FLUX.1-dev",
    modelspec="flux-1-dev",  # sd-scripts's
    gguf="flux",
    version="flux1",  # sd-scripts'
    size=1024,
    implementation="https://github.com/black-forest-labs/flux",
    parts=(
        Transformer(
            module="FluxTransformer2DModel",
            sentinel="transformer_blocks.0.norm1_context.linear.weight",
            inputs="x_embedder.weight",
            kohya="lora_transformer_",
            ends=ENDS,
            lists=(
                BlockList("transformer_blocks", DOUBLE, 19, "D", "double_blocks", aliases=XLABS_DOUBLE),
                BlockList("single_transformer_blocks", SINGLE, 38, "S", "single_blocks", aliases=XLABS_SINGLE),
            ),
            ratios=RATIOS,
        ),
        CLIP_L,
        T5,
        Component(name="vae", module="AutoencoderKL"),
    ),
    family=Family(
        prediction="flow",
        guidance=3.5,
        duty="no commercial use",
        duty_with="transformer.time_text_embed.guidance_embedder.linear_1.weight",  # schnell is under Apache-2.0
    ),
)

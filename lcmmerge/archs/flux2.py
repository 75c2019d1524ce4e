"""FLUX.2, dev and klein 4B and 9B: FLUX.1's two kinds of blocks; all share modulations, and the single ones stay fused.

Single files have the names of https://github.com/black-forest-labs/flux2, src/flux2/model.py.
"""

from lcmmerge.archs.base import Architecture, Family
from lcmmerge.archs.component import Component
from lcmmerge.archs.tables import Row, fused
from lcmmerge.archs.transformer import BlockList, Transformer
from lcmmerge.archs.views import SWAPPED

ENDS = (
    Row("x_embedder.weight", "img_in.weight"),
    Row("context_embedder.weight", "txt_in.weight"),
    Row("time_guidance_embed.timestep_embedder.linear_1.weight", "time_in.in_layer.weight"),
    Row("time_guidance_embed.timestep_embedder.linear_2.weight", "time_in.out_layer.weight"),
    Row("time_guidance_embed.guidance_embedder.linear_1.weight", "guidance_in.in_layer.weight", optional=True),  # dev's
    Row("time_guidance_embed.guidance_embedder.linear_2.weight", "guidance_in.out_layer.weight", optional=True),
    Row("double_stream_modulation_img.linear.weight", "double_stream_modulation_img.lin.weight"),
    Row("double_stream_modulation_txt.linear.weight", "double_stream_modulation_txt.lin.weight"),
    Row("single_stream_modulation.linear.weight", "single_stream_modulation.lin.weight"),
    Row("norm_out.linear.weight", "final_layer.adaLN_modulation.1.weight", SWAPPED),
    Row("proj_out.weight", "final_layer.linear.weight"),
)
DOUBLE = (
    *fused("img_attn.qkv.weight", ("attn.to_q.weight", "attn.to_k.weight", "attn.to_v.weight")),
    *fused("txt_attn.qkv.weight", ("attn.add_q_proj.weight", "attn.add_k_proj.weight", "attn.add_v_proj.weight")),
    Row("attn.norm_q.weight", "img_attn.norm.query_norm.scale"),
    Row("attn.norm_k.weight", "img_attn.norm.key_norm.scale"),
    Row("attn.norm_added_q.weight", "txt_attn.norm.query_norm.scale"),
    Row("attn.norm_added_k.weight", "txt_attn.norm.key_norm.scale"),
    Row("attn.to_out.0.weight", "img_attn.proj.weight"),
    Row("attn.to_add_out.weight", "txt_attn.proj.weight"),
    Row("ff.linear_in.weight", "img_mlp.0.weight"),
    Row("ff.linear_out.weight", "img_mlp.2.weight"),
    Row("ff_context.linear_in.weight", "txt_mlp.0.weight"),
    Row("ff_context.linear_out.weight", "txt_mlp.2.weight"),
)
SINGLE = (
    Row("attn.to_qkv_mlp_proj.weight", "linear1.weight"),
    Row("attn.norm_q.weight", "norm.query_norm.scale"),
    Row("attn.norm_k.weight", "norm.key_norm.scale"),
    Row("attn.to_out.weight", "linear2.weight"),
)

ARCHITECTURE = Architecture(
    title="FLUX.2",
    hub="black-forest-labs/FLUX.2-dev",
    modelspec="Flux.2-dev",  # musubi-tuner's
    version="flux_2_dev",  # musubi-tuner's
    size=1024,
    implementation="https://github.com/black-forest-labs/flux2",
    parts=(
        Transformer(
            module="Flux2Transformer2DModel",
            sentinel="single_stream_modulation.linear.weight",
            kohya="lora_transformer_",
            ends=ENDS,
            lists=(
                BlockList("transformer_blocks", DOUBLE, 8, "D", "double_blocks"),
                BlockList("single_transformer_blocks", SINGLE, 48, "S", "single_blocks"),
            ),
            ratios=(("ff.linear_in", 6), ("ff_context.linear_in", 6), ("attn.to_qkv_mlp_proj", 9)),
        ),
        Component(name="text_encoder", module="Mistral3ForConditionalGeneration"),  # klein's is Qwen3ForCausalLM
        Component(name="vae", module="AutoencoderKLFlux2"),
    ),
    family=Family(prediction="flow", guidance=4.0, duty="no commercial use of dev and klein 9B"),
)

"""FLUX.3 klein: blocks for image, reference and text, then joint ones; the distilled one is told where a step ends.

Single files have the names of Black Forest Labs' release, in which ``repa_projectors`` are of the training alone.
"""

from lcmmerge.archs.base import Architecture, Family
from lcmmerge.archs.component import Component
from lcmmerge.archs.tables import Row
from lcmmerge.archs.transformer import BlockList, Transformer
from lcmmerge.archs.views import SWAPPED

STREAMS = ("image", "image_cond", "txt")
MODULATIONS = [f"{when}_stream_modulations.{stream}" for when in ("early", "single") for stream in STREAMS]
ENDS = (
    Row("timestep_embedder.linear_1.weight", "time_in.in_layer.weight"),
    Row("timestep_embedder.linear_2.weight", "time_in.out_layer.weight"),
    Row("target_timestep_embedder.linear_1.weight", "ref_time_in.in_layer.weight", optional=True),
    Row("target_timestep_embedder.linear_2.weight", "ref_time_in.out_layer.weight", optional=True),
    Row("x_embedders.image.weight", "emb_in.image.weight"),
    Row("x_embedders.image_cond.weight", "emb_in.image_cond.weight"),
    Row("context_embedder.weight", "txt_in.weight"),
    *(Row(f"{name}.linear.weight", f"{name}.lin.weight") for name in MODULATIONS),
    Row("norm_out.linear.weight", "final_layer.image.adaLN_modulation.1.weight", SWAPPED),
    Row("proj_out.weight", "final_layer.image.linear.weight"),
)
BLOCK = (
    Row("attn.to_q.weight", "q_proj.weight"),
    Row("attn.to_k.weight", "k_proj.weight"),
    Row("attn.to_v.weight", "v_proj.weight"),
    Row("attn.to_out.0.weight", "attn_out.weight"),
    Row("attn.norm_q.weight", "norm.query_norm.scale"),
    Row("attn.norm_k.weight", "norm.key_norm.scale"),
    Row("ff.linear_in.weight", "mlp_in.weight"),
    Row("ff.linear_out.weight", "mlp_out.weight"),
)

ARCHITECTURE = Architecture(
    title="FLUX.3",
    hub="black-forest-labs/flux-3-image-klein-base",
    modelspec="flux-3-klein",  # ours: none is published
    size=1024,
    implementation="https://huggingface.co/black-forest-labs/flux-3-image-klein-base",
    parts=(
        Transformer(
            module="Flux3Transformer2DModel",
            sentinel="early_stream_modulations.image.linear.weight",
            kohya="lora_transformer_",
            kohya_stored=True,
            ends=ENDS,
            lists=(
                BlockList("mode_blocks.image", BLOCK, 5, "I", "content_mode_blocks.image"),
                BlockList("mode_blocks.image_cond", BLOCK, 5, "C", "content_mode_blocks.image_cond"),
                BlockList("txt_mode_blocks", BLOCK, 5, "T"),
                BlockList("single_transformer_blocks", BLOCK, 28, "S", "single_blocks"),
            ),
        ),
        Component(name="text_encoder"),
        Component(name="vae"),
    ),
    family=Family(prediction="flow", guidance=4.0),
)

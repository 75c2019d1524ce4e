"""Z-Image and Z-Image-Turbo: a single-stream transformer with refiners of the image and of the text before it.

Single files have the names of https://huggingface.co/Comfy-Org/z_image_turbo, diffusion_models/, in which a
``norm_final`` may be left that nothing reads.
"""

from lcmmerge.archs.base import Architecture, Family
from lcmmerge.archs.component import Component
from lcmmerge.archs.tables import Row, fused
from lcmmerge.archs.transformer import BlockList, Transformer

ENDS = (
    Row("x_pad_token"),
    Row("cap_pad_token"),
    Row("all_x_embedder.2-1.{p}", "x_embedder.{p}"),
    Row("all_final_layer.2-1.linear.{p}", "final_layer.linear.{p}"),
    Row("all_final_layer.2-1.adaLN_modulation.1.{p}", "final_layer.adaLN_modulation.1.{p}"),
    Row("t_embedder.mlp.0.{p}"),
    Row("t_embedder.mlp.2.{p}"),
    Row("cap_embedder.0.weight"),
    Row("cap_embedder.1.{p}"),
)
UNMODULATED = (
    *fused("attention.qkv.weight", ("attention.to_q.weight", "attention.to_k.weight", "attention.to_v.weight")),
    Row("attention.norm_q.weight", "attention.q_norm.weight"),
    Row("attention.norm_k.weight", "attention.k_norm.weight"),
    Row("attention.to_out.0.weight", "attention.out.weight"),
    Row("feed_forward.w1.weight"),
    Row("feed_forward.w2.weight"),
    Row("feed_forward.w3.weight"),
    Row("attention_norm1.weight"),
    Row("attention_norm2.weight"),
    Row("ffn_norm1.weight"),
    Row("ffn_norm2.weight"),
)
BLOCK = (*UNMODULATED, Row("adaLN_modulation.0.{p}"))

ARCHITECTURE = Architecture(
    title="Z-Image",
    hub="Tongyi-MAI/Z-Image",
    modelspec="z-image",  # SwarmUI's
    gguf="lumina2",
    version="z_image",  # musubi-tuner's
    size=1024,
    implementation="https://github.com/Tongyi-MAI/Z-Image",
    parts=(
        Transformer(
            module="ZImageTransformer2DModel",
            sentinel="layers.0.adaLN_modulation.0.weight",
            ends=ENDS,
            lists=(
                BlockList("noise_refiner", BLOCK, 2, "N"),
                BlockList("context_refiner", UNMODULATED, 2, "C"),
                BlockList("layers", BLOCK, 30, "L"),
            ),
            ratios=(("attention.to_q", 1),),
        ),
        Component(name="text_encoder", module="Qwen3Model", kohya="lora_te_"),
        Component(name="vae", module="AutoencoderKL"),
    ),
    family=Family(prediction="flow", guidance=4.0),
)

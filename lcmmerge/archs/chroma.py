"""Chroma: FLUX.1 without modulation layers and pooled text; a small network of its own makes what they would.

Names: https://huggingface.co/lodestones/Chroma; its own code never swaps a final norm, because it has none.
"""

from lcmmerge.archs.base import Architecture, Family
from lcmmerge.archs.component import Component
from lcmmerge.archs.flux1 import ATTENTION, EMBEDDERS, LINEARS, RATIOS, XLABS_DOUBLE, XLABS_SINGLE
from lcmmerge.archs.tables import Row
from lcmmerge.archs.transformer import BlockList, Transformer

GUIDANCE = "distilled_guidance_layer."
ENDS = (
    *EMBEDDERS,
    Row("proj_out.{p}", "final_layer.linear.{p}"),
    Row(GUIDANCE + "in_proj.{p}"),
    Row(GUIDANCE + "out_proj.{p}"),
)
LAYER = (Row("linear_1.{p}", "in_layer.{p}"), Row("linear_2.{p}", "out_layer.{p}"))

ARCHITECTURE = Architecture(
    title="Chroma",
    hub="lodestones/Chroma1-HD",
    modelspec="chroma",  # sd-scripts's
    gguf="flux",
    version="chroma",  # sd-scripts'
    size=1024,
    implementation="https://huggingface.co/lodestones/Chroma",
    parts=(
        Transformer(
            module="ChromaTransformer2DModel",
            sentinel="distilled_guidance_layer.in_proj.bias",
            kohya="lora_transformer_",
            ends=ENDS,
            lists=(
                BlockList("transformer_blocks", ATTENTION, 19, "D", "double_blocks", aliases=XLABS_DOUBLE),
                BlockList("single_transformer_blocks", LINEARS, 38, "S", "single_blocks", aliases=XLABS_SINGLE),
                BlockList(GUIDANCE + "layers", LAYER, 5),
                BlockList(GUIDANCE + "norms", (Row("weight", "scale"),), 5),
            ),
            ratios=RATIOS,
        ),
        Component(name="text_encoder", module="T5EncoderModel", kohya="lora_te_", comfy="t5xxl"),
        Component(name="vae", module="AutoencoderKL"),
    ),
    family=Family(prediction="flow", guidance=5.0),
)

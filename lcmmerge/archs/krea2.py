"""Krea 2, Raw and Turbo: a single-stream transformer with gated attention; a smaller one fuses its text's layers.

Single files have the names of https://huggingface.co/krea/Krea-2-Raw; a block's six modulations are one vector there.
"""

from lcmmerge.archs.base import Architecture, Family
from lcmmerge.archs.component import Component
from lcmmerge.archs.tables import Row
from lcmmerge.archs.transformer import BlockList, Transformer
from lcmmerge.archs.views import View

ENDS = (
    Row("img_in.{p}", "first.{p}"),
    Row("time_embed.linear_1.{p}", "tmlp.0.{p}"),
    Row("time_embed.linear_2.{p}", "tmlp.2.{p}"),
    Row("time_mod_proj.{p}", "tproj.1.{p}"),
    Row("txt_in.norm.weight", "txtmlp.0.scale"),
    Row("txt_in.linear_1.{p}", "txtmlp.1.{p}"),
    Row("txt_in.linear_2.{p}", "txtmlp.3.{p}"),
    Row("text_fusion.projector.weight", "txtfusion.projector.weight"),
    Row("final_layer.linear.{p}", "last.linear.{p}"),
    Row("final_layer.norm.weight", "last.norm.scale"),
    Row("final_layer.scale_shift_table", "last.modulation.lin"),
)
TEXT = (
    Row("attn.to_q.weight", "attn.wq.weight"),
    Row("attn.to_k.weight", "attn.wk.weight"),
    Row("attn.to_v.weight", "attn.wv.weight"),
    Row("attn.to_out.0.weight", "attn.wo.weight"),
    Row("attn.to_gate.weight", "attn.gate.weight"),
    Row("attn.norm_q.weight", "attn.qknorm.qnorm.scale"),
    Row("attn.norm_k.weight", "attn.qknorm.knorm.scale"),
    Row("ff.gate.weight", "mlp.gate.weight"),
    Row("ff.up.weight", "mlp.up.weight"),
    Row("ff.down.weight", "mlp.down.weight"),
    Row("norm1.weight", "prenorm.scale"),
    Row("norm2.weight", "postnorm.scale"),
)
BLOCK = (*TEXT, Row("scale_shift_table", "mod.lin", View(canonical=(6, -1), stored=(-1,))))

ARCHITECTURE = Architecture(
    title="Krea 2",
    hub="krea/Krea-2-Raw",
    modelspec="Krea-2",  # musubi-tuner's
    version="krea2",  # musubi-tuner's
    size=1024,
    implementation="https://huggingface.co/krea/Krea-2-Raw",
    parts=(
        Transformer(
            module="Krea2Transformer2DModel",
            sentinel="text_fusion.projector.weight",
            kohya_stored=True,
            ends=ENDS,
            lists=(
                BlockList("text_fusion.layerwise_blocks", TEXT, 2, "T", "txtfusion.layerwise_blocks"),
                BlockList("text_fusion.refiner_blocks", TEXT, 2, "R", "txtfusion.refiner_blocks"),
                BlockList("transformer_blocks", BLOCK, 28, "B", "blocks"),
            ),
        ),
        Component(name="text_encoder", module="Qwen3VLModel"),
        Component(name="vae", module="AutoencoderKLQwenImage"),
    ),
    family=Family(
        prediction="flow",
        guidance=4.5,
        duty="what is made of it must be named “Krea …” and say that it was modified, "
        "and is for those with less than 1 M$ of revenue",
    ),
)

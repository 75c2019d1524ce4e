"""ERNIE-Image: a single-stream transformer. Names are the same in every layout."""

from lcmmerge.archs.base import Architecture, Family
from lcmmerge.archs.component import Component
from lcmmerge.archs.tables import Row
from lcmmerge.archs.transformer import BlockList, Transformer

ENDS = (
    Row("x_embedder.proj.{p}"),
    Row("text_proj.weight", optional=True),  # not where the text is as wide as the image
    Row("time_embedding.linear_1.{p}"),
    Row("time_embedding.linear_2.{p}"),
    Row("adaLN_modulation.1.{p}"),
    Row("final_norm.linear.{p}"),
    Row("final_linear.{p}"),
)
BLOCK = (
    Row("adaLN_sa_ln.weight"),
    Row("self_attention.to_q.weight"),
    Row("self_attention.to_k.weight"),
    Row("self_attention.to_v.weight"),
    Row("self_attention.norm_q.weight"),
    Row("self_attention.norm_k.weight"),
    Row("self_attention.to_out.0.weight"),
    Row("adaLN_mlp_ln.weight"),
    Row("mlp.gate_proj.weight"),
    Row("mlp.up_proj.weight"),
    Row("mlp.linear_fc2.weight"),
)

ARCHITECTURE = Architecture(
    title="ERNIE-Image",
    hub="baidu/ERNIE-Image",
    modelspec="ernie-image",  # ours: none is published
    size=1024,
    parts=(
        Transformer(
            module="ErnieImageTransformer2DModel",
            sentinel="layers.0.adaLN_sa_ln.weight",
            ends=ENDS,
            lists=(BlockList("layers", BLOCK, 24, "L"),),
        ),
        Component(name="text_encoder"),
        Component(name="vae"),
    ),
    family=Family(prediction="flow", guidance=4.0),
)

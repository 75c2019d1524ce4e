"""Cosmos-Predict 2, and Anima, which is tuned of it and has a network of its own between text encoder and blocks.

Single files have ``net.`` before the names of https://github.com/nvidia-cosmos/cosmos-predict2, and before Anima's own.
"""

from __future__ import annotations

from lcmmerge.archs.base import Architecture, Family
from lcmmerge.archs.component import Component
from lcmmerge.archs.tables import Row
from lcmmerge.archs.transformer import BlockList, Transformer

ENDS = (
    Row("patch_embed.proj.weight", "x_embedder.proj.1.weight"),
    Row("learnable_pos_embed.pos_emb_t", "extra_pos_embedder.pos_emb_t", optional=True),
    Row("learnable_pos_embed.pos_emb_h", "extra_pos_embedder.pos_emb_h", optional=True),
    Row("learnable_pos_embed.pos_emb_w", "extra_pos_embedder.pos_emb_w", optional=True),
    Row("time_embed.t_embedder.linear_1.weight", "t_embedder.1.linear_1.weight"),
    Row("time_embed.t_embedder.linear_2.weight", "t_embedder.1.linear_2.weight"),
    Row("time_embed.norm.weight", "t_embedding_norm.weight"),
    Row("norm_out.linear_1.weight", "final_layer.adaln_modulation.1.weight"),
    Row("norm_out.linear_2.weight", "final_layer.adaln_modulation.2.weight"),
    Row("proj_out.weight", "final_layer.linear.weight"),
)


def _attention(canonical: str, stored: str) -> tuple[Row, ...]:
    names = {
        "to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out.0": "output_proj",
        "norm_q": "q_norm", "norm_k": "k_norm",
    }  # fmt: skip
    return tuple(Row(f"{canonical}.{new}.weight", f"{stored}.{old}.weight") for new, old in names.items())


BLOCK = (
    *_attention("attn1", "self_attn"),
    *_attention("attn2", "cross_attn"),
    *(
        Row(f"norm{i}.linear_{j}.weight", f"adaln_modulation_{kind}.{j}.weight")
        for i, kind in enumerate(("self_attn", "cross_attn", "mlp"), 1)
        for j in (1, 2)
    ),
    Row("ff.net.0.proj.weight", "mlp.layer1.weight"),
    Row("ff.net.2.weight", "mlp.layer2.weight"),
)

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj", "q_norm", "k_norm")
CONDITIONER_BLOCK = (
    *(Row(f"{name}_attn.{part}.weight") for name in ("self", "cross") for part in ATTENTION),
    *(Row(f"norm_{name}.weight") for name in ("self_attn", "cross_attn", "mlp")),
    Row("mlp.0.{p}"),
    Row("mlp.2.{p}"),
)


class Conditioner(Transformer):
    """Anima's network. Its modules go by their full names, because the denoiser's blocks have some of the same."""

    def spellings(self, name: str) -> tuple[str, ...]:
        return (f"{self.name}.{name}",)


ARCHITECTURE = Architecture(
    title="Cosmos-Predict 2 (Anima)",
    hub="nvidia/Cosmos-Predict2-2B-Text2Image",
    modelspec="nvidia-cosmos-predict2-t2i-2b",  # SwarmUI's
    gguf="cosmos",
    version="anima",  # sd-scripts', of Anima
    size=1024,
    implementation="https://github.com/nvidia-cosmos/cosmos-predict2",
    parts=(
        Transformer(
            module="CosmosTransformer3DModel",
            sentinel="transformer_blocks.0.norm3.linear_1.weight",
            kohya_stored=True,
            ends=ENDS,
            lists=(BlockList("transformer_blocks", BLOCK, 28, "B", "blocks"),),
        ),
        Conditioner(
            name="text_conditioner",
            module="AnimaTextConditioner",
            kind="text conditioner",
            kohya_stored=True,
            optional=True,
            ends=(
                Row("embed.weight", "llm_adapter.embed.weight"),
                *(Row(f"{name}.{{p}}", f"llm_adapter.{name}.{{p}}", optional=name == "in_proj")
                  for name in ("in_proj", "out_proj")),
                Row("norm.weight", "llm_adapter.norm.weight"),
            ),
            lists=(BlockList("blocks", CONDITIONER_BLOCK, 6, stored="llm_adapter.blocks"),),
        ),
        Component(name="text_encoder", kohya="lora_te_"),
        Component(name="vae", module="AutoencoderKLWan"),
    ),
    family=Family(prediction="flow", guidance=4.0),
)

"""AuraFlow: double-stream blocks, then single-stream ones.

Single files have the names of https://huggingface.co/fal/AuraFlow-v0.3.
"""

from lcmmerge.archs.base import Architecture, Family
from lcmmerge.archs.component import Component
from lcmmerge.archs.tables import Row
from lcmmerge.archs.transformer import BlockList, Transformer
from lcmmerge.archs.views import SWAPPED

ENDS = (
    Row("register_tokens"),
    Row("pos_embed.pos_embed", "positional_encoding"),
    Row("pos_embed.proj.{p}", "init_x_linear.{p}"),
    Row("context_embedder.weight", "cond_seq_linear.weight"),
    Row("time_step_proj.linear_1.{p}", "t_embedder.mlp.0.{p}"),
    Row("time_step_proj.linear_2.{p}", "t_embedder.mlp.2.{p}"),
    Row("norm_out.linear.weight", "modF.1.weight", SWAPPED),
    Row("proj_out.weight", "final_linear.weight"),
)


def _mlp(canonical: str, stored: str) -> tuple[Row, ...]:
    names = {"linear_1": "c_fc1", "linear_2": "c_fc2", "out_projection": "c_proj"}
    return tuple(Row(f"{canonical}.{new}.weight", f"{stored}.{old}.weight") for new, old in names.items())


DOUBLE = (
    Row("norm1.linear.weight", "modX.1.weight"),
    Row("norm1_context.linear.weight", "modC.1.weight"),
    Row("attn.to_q.weight", "attn.w2q.weight"),
    Row("attn.to_k.weight", "attn.w2k.weight"),
    Row("attn.to_v.weight", "attn.w2v.weight"),
    Row("attn.to_out.0.weight", "attn.w2o.weight"),
    Row("attn.add_q_proj.weight", "attn.w1q.weight"),
    Row("attn.add_k_proj.weight", "attn.w1k.weight"),
    Row("attn.add_v_proj.weight", "attn.w1v.weight"),
    Row("attn.to_add_out.weight", "attn.w1o.weight"),
    *_mlp("ff", "mlpX"),
    *_mlp("ff_context", "mlpC"),
)
SINGLE = (
    Row("norm1.linear.weight", "modCX.1.weight"),
    Row("attn.to_q.weight", "attn.w1q.weight"),
    Row("attn.to_k.weight", "attn.w1k.weight"),
    Row("attn.to_v.weight", "attn.w1v.weight"),
    Row("attn.to_out.0.weight", "attn.w1o.weight"),
    *_mlp("ff", "mlp"),
)

ARCHITECTURE = Architecture(
    title="AuraFlow",
    hub="fal/AuraFlow-v0.3",
    modelspec="auraflow-v1",  # SwarmUI's
    gguf="aura",
    size=1024,
    implementation="https://huggingface.co/fal/AuraFlow-v0.3",
    parts=(
        Transformer(
            module="AuraFlowTransformer2DModel",
            sentinel="register_tokens",
            ends=ENDS,
            lists=(
                BlockList("joint_transformer_blocks", DOUBLE, 4, "D", "double_layers"),
                BlockList("single_transformer_blocks", SINGLE, 32, "S", "single_layers"),
            ),
        ),
        Component(name="text_encoder", module="UMT5EncoderModel"),
        Component(name="vae", module="AutoencoderKL"),
    ),
    family=Family(prediction="flow", guidance=3.5),
)

"""HiDream-I1: double-stream, then single-stream blocks, whose MLPs are experts. Names are the same in every layout."""

from lcmmerge.archs.base import Architecture, Family
from lcmmerge.archs.component import Component
from lcmmerge.archs.tables import Row
from lcmmerge.archs.transformer import BlockList, Transformer

ENDS = (
    Row("t_embedder.timestep_embedder.linear_1.{p}"),
    Row("t_embedder.timestep_embedder.linear_2.{p}"),
    Row("p_embedder.pooled_embedder.linear_1.{p}"),
    Row("p_embedder.pooled_embedder.linear_2.{p}"),
    Row("x_embedder.proj.{p}"),
    Row("final_layer.linear.{p}"),
    Row("final_layer.adaLN_modulation.1.{p}"),
)
MLPS = ("shared_experts", *(f"experts.{i}" for i in range(4)))
IMAGE = (
    Row("block.adaLN_modulation.1.{p}"),
    *(Row(f"block.attn1.{name}.{{p}}") for name in ("to_q", "to_k", "to_v", "to_out")),
    *(Row(f"block.attn1.{name}.weight") for name in ("q_rms_norm", "k_rms_norm")),
    *(Row(f"block.ff_i.{mlp}.w{i}.weight") for mlp in MLPS for i in (1, 2, 3)),
    Row("block.ff_i.gate.weight"),
)
BOTH = (
    *IMAGE,
    *(Row(f"block.attn1.{name}_t.{{p}}") for name in ("to_q", "to_k", "to_v", "to_out")),
    *(Row(f"block.attn1.{name}_t.weight") for name in ("q_rms_norm", "k_rms_norm")),
    *(Row(f"block.ff_t.w{i}.weight") for i in (1, 2, 3)),
)

ARCHITECTURE = Architecture(
    title="HiDream-I1",
    hub="HiDream-ai/HiDream-I1-Full",
    modelspec="hidream-i1",  # SwarmUI's
    gguf="hidream",
    size=1024,
    parts=(
        Transformer(
            module="HiDreamImageTransformer2DModel",
            sentinel="double_stream_blocks.0.block.adaLN_modulation.1.bias",
            ends=ENDS,
            lists=(
                BlockList("double_stream_blocks", BOTH, 16, "D"),
                BlockList("single_stream_blocks", IMAGE, 32, "S"),
                BlockList("caption_projection", (Row("linear.weight"),), 49),
            ),
        ),
        *(Component(name=f"text_encoder{number}") for number in ("", "_2", "_3", "_4")),
        Component(name="vae", module="AutoencoderKL"),
    ),
    family=Family(prediction="flow", guidance=5.0),
)

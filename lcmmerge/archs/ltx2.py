"""LTX-2: video and sound, each with a stream of its own. One file holds it, its VAEs, vocoder and text connectors.

Single files have the names of https://github.com/Lightricks/LTX-2, packages/ltx-core; what is not the transformer's is
copied as it is. 2.3 has gates on its attention, and embeddings of the prompt.
"""

from lcmmerge.archs.base import Architecture, Family
from lcmmerge.archs.component import Component
from lcmmerge.archs.tables import Row
from lcmmerge.archs.transformer import BlockList, Transformer

STREAMS = ("", "audio_")
MODULATIONS = {
    "time_embed": "adaln_single",
    "audio_time_embed": "audio_adaln_single",
    "av_cross_attn_video_scale_shift": "av_ca_video_scale_shift_adaln_single",
    "av_cross_attn_audio_scale_shift": "av_ca_audio_scale_shift_adaln_single",
    "av_cross_attn_video_a2v_gate": "av_ca_a2v_gate_adaln_single",
    "av_cross_attn_audio_v2a_gate": "av_ca_v2a_gate_adaln_single",
}
PROMPTS = {"prompt_adaln": "prompt_adaln_single", "audio_prompt_adaln": "audio_prompt_adaln_single"}
PARTS = ("emb.timestep_embedder.linear_1.{p}", "emb.timestep_embedder.linear_2.{p}", "linear.{p}")
ENDS = (
    *(Row(f"{x}proj_in.{{p}}", f"{x}patchify_proj.{{p}}") for x in STREAMS),
    *(Row(f"{x}proj_out.{{p}}") for x in STREAMS),
    *(Row(f"{x}scale_shift_table") for x in STREAMS),
    *(Row(f"{x}caption_projection.linear_{i}.{{p}}", optional=True) for x in STREAMS for i in (1, 2)),
    *(Row(f"{new}.{part}", f"{old}.{part}") for new, old in MODULATIONS.items() for part in PARTS),
    *(Row(f"{new}.{part}", f"{old}.{part}", optional=True) for new, old in PROMPTS.items() for part in PARTS),
)
ATTENTIONS = ("attn1", "attn2", "audio_attn1", "audio_attn2", "audio_to_video_attn", "video_to_audio_attn")
BLOCK = (
    *(Row(f"{name}.{to}.{{p}}") for name in ATTENTIONS for to in ("to_q", "to_k", "to_v", "to_out.0")),
    *(Row(f"{name}.to_gate_logits.{{p}}", optional=True) for name in ATTENTIONS),
    *(Row(f"{name}.norm_{x}.weight", f"{name}.{x}_norm.weight") for name in ATTENTIONS for x in "qk"),
    *(Row(f"{x}ff.net.0.proj.weight") for x in STREAMS),
    *(Row(f"{x}ff.net.2.weight") for x in STREAMS),
    *(Row(f"{x}ff.net.{name}.bias", optional=True) for x in STREAMS for name in ("0.proj", "2")),
    *(Row(f"{x}scale_shift_table") for x in STREAMS),
    Row("video_a2v_cross_attn_scale_shift_table", "scale_shift_table_a2v_ca_video"),
    Row("audio_a2v_cross_attn_scale_shift_table", "scale_shift_table_a2v_ca_audio"),
    *(Row(f"{x}prompt_scale_shift_table", optional=True) for x in STREAMS),
)

ARCHITECTURE = Architecture(
    title="LTX-2",
    hub="Lightricks/LTX-2",
    modelspec="lightricks-ltx-video-2",  # SwarmUI's
    gguf="ltxv",
    size=768,
    implementation="https://github.com/Lightricks/LTX-2",
    parts=(
        Transformer(
            module="LTX2VideoTransformer3DModel",
            sentinel="audio_time_embed.linear.weight",
            kohya_stored=True,
            ends=ENDS,
            lists=(BlockList("transformer_blocks", BLOCK, 48, "B"),),
        ),
        Component(name="text_encoder", module="Gemma3ForConditionalGeneration"),
        *(Component(name=name) for name in ("connectors", "vae", "audio_vae", "vocoder")),
    ),
    family=Family(
        prediction="flow",
        guidance=4.0,
        duty="those with more than 10 M$ of revenue need a licence of Lightricks'",
    ),
)

"""A CLIP text encoder with all its hidden states: pipelines take the last but one, or skip more (``clip_skip``)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lcmmerge.errors import IncompatibleError
from lcmmerge.graphs.components.base import ComponentKind, PipelinePart, Port, read_config

if TYPE_CHECKING:
    from torch import Tensor, nn

PROJECTED = "CLIPTextModelWithProjection"


def describe(name: str, folder: Path, config: dict[str, Any], source_class: str) -> PipelinePart:
    import torch

    if source_class not in ("CLIPTextModel", PROJECTED):
        raise IncompatibleError(f"{folder}: is a {source_class}", "give a model with CLIP text encoders")
    # transformers leaves its class's defaults out of a config.
    config = {"hidden_size": 512, "projection_dim": 512, "num_hidden_layers": 12} | config
    config |= {"max_position_embeddings": config.get("max_position_embeddings", 77), "class": source_class}
    config["tokens"] = _tokens(folder, config["max_position_embeddings"])

    def shrink(config: Mapping[str, Any]) -> PipelinePart:
        sizes = {"hidden_size": 24, "intermediate_size": 48, "projection_dim": 20, "num_attention_heads": 2}
        return describe(name, folder, {**config, **sizes, "num_hidden_layers": 2}, source_class)

    length, width = config["tokens"], config["hidden_size"]
    states = Port("last_hidden_state", ("batch", length, width))
    if source_class == PROJECTED:
        pooled = (Port("text_embeds", ("batch", config["projection_dim"])), states)
    else:
        pooled = (states, Port("pooler_output", ("batch", width)))
    hidden = (
        Port(f"hidden_states.{layer}", ("batch", length, width)) for layer in range(config["num_hidden_layers"] + 1)
    )
    inputs = (Port("input_ids", ("batch", length), torch.int64),)
    return PipelinePart(name, folder, "model.safetensors", config, inputs, (*pooled, *hidden), build, shrink=shrink)


def _tokens(folder: Path, most: int) -> int:
    """How many tokens a prompt is padded to, as the tokenizer beside the encoder says."""
    path = folder.with_name(folder.name.replace("text_encoder", "tokenizer")) / "tokenizer_config.json"
    return int(min(most, read_config(path).get("model_max_length", most))) if path.is_file() else most


def build(config: Mapping[str, Any]) -> nn.Module:
    import torch
    import transformers

    class TextEncoderModule(torch.nn.Module):
        """input_ids → last_hidden_state and pooler_output (or text_embeds, last_hidden_state), hidden_states.0 …"""

        def __init__(self) -> None:
            super().__init__()
            encoder = getattr(transformers, config["class"])(transformers.CLIPTextConfig(**config))
            # transformers 5's CLIPTextModel has no attribute text_model, which its files' names begin with.
            self.attribute = "model" if hasattr(encoder, "text_model") else "text_model"
            setattr(self, self.attribute, encoder)

        def forward(self, input_ids: Tensor) -> tuple[Tensor, ...]:
            # The module's own positions are a buffer, which has no values on the meta device.
            positions = torch.arange(input_ids.shape[1], device=input_ids.device)[None]
            output = getattr(self, self.attribute)(input_ids, position_ids=positions, output_hidden_states=True)
            if config["class"] == PROJECTED:
                return (output.text_embeds, output.last_hidden_state, *output.hidden_states)
            return (output.last_hidden_state, output.pooler_output, *output.hidden_states)

    return TextEncoderModule()


KIND = ComponentKind(("text_encoder", "text_encoder_2"), describe)
